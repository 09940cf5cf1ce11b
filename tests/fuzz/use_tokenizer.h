// What the fuzz targets of tokenizers do with one that could be read.
#pragma once

#include <cstdint>

#include "model/tokenizer.h"

namespace kvquant {

inline void use_tokenizer(const TokenizerData& data) {
  const Tokenizer tokenizer(data);
  for (const auto special : {Tokenizer::Special::kParse, Tokenizer::Special::kAsText}) {
    const auto ids = tokenizer.encode(
        "ab <s>a  b 12\u00E9 1234e\u0301\n<tool> \u2581\u6F22!! 'Ll CamelX \x01", special);
    tokenizer.decode(ids, true);
    tokenizer.decode(ids);
    StreamDecoder stream(tokenizer);
    for (const int32_t id : ids) stream.next(id);
    stream.finish();
  }
}

}  // namespace kvquant
