// Models in several GGUF files, "NAME-00001-of-00003.gguf" and so on. Each shard holds tensors and
// its place (split.no from 0, split.count, split.tensors.count); the first one holds all other
// metadata.
#pragma once

#include <string>
#include <vector>

#include "base/file.h"
#include "model/gguf.h"

namespace kvquant {

// The paths of all shards of the model that `shard` belongs to, in order, by its path and metadata;
// only its own when the model is one file. Throws FormatError when the path's name is not that of
// the shard it says it is.
std::vector<std::string> gguf_shard_paths(const Gguf& shard);

// The first shard's metadata with the tensors of all: shards[i] is what lies at the path i of
// gguf_shard_paths. Throws FormatError naming the shard that is in another one's place, belongs to
// another model, or holds a tensor that another one has.
Gguf join_gguf_shards(std::vector<Gguf> shards);

// Reads the file and, if it is a shard of a model, any one, all others beside it. `files` becomes
// what the views point into. Throws IoError when a shard is missing, and FormatError.
Gguf open_gguf_shards(const MappedFile& file, std::vector<MappedFile>& files);

}  // namespace kvquant
