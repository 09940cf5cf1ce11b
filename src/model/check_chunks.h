// What a batch has to be before it goes through the layers, on CPUs and devices alike.
#pragma once

#include <cstdint>
#include <iterator>
#include <set>
#include <span>
#include <string>

#include "base/check.h"
#include "model/config.h"

namespace kvquant {

// Chunks of different sequences of the cache, with tokens of the vocabulary that fit into the
// context. Throws std::invalid_argument naming what doesn't.
template <class Chunk, class Cache>
void check_chunks(const ModelConfig& config, std::span<const Chunk> chunks, const Cache& cache) {
  check_arg(!chunks.empty(), "the batch is empty");
  std::set<decltype(Chunk::sequence)> sequences;
  for (const auto& chunk : chunks) {
    check_arg(!chunk.tokens.empty(), "a chunk of the batch is empty");
    check_arg(sequences.insert(chunk.sequence).second,
              "two chunks of the batch are of sequence " + std::to_string(chunk.sequence));
    const int64_t end = cache.length(chunk.sequence) + std::ssize(chunk.tokens);
    check_arg(end <= config.max_context, "the sequence would reach " + std::to_string(end) +
                                             " tokens, the model's context is " +
                                             std::to_string(config.max_context));
    for (const int32_t token : chunk.tokens) {
      check_arg(0 <= token && token < config.vocab_size, "token " + std::to_string(token) +
                                                             " is not in the vocabulary of " +
                                                             std::to_string(config.vocab_size));
    }
  }
}

}  // namespace kvquant
