// The parts of tokenizer.json around its model: normalizer, pre_tokenizer and decoder, recognised
// by their content (tokenizer_json.h lists which). All else is refused by name: FormatError.
#pragma once

#include "model/tokenizer_data.h"
#include "model/tokenizer_json_fields.h"

namespace kvquant {

// Sets pre_tokenizer, nfc, space_prefix and split_at_spaces from the whole file's "normalizer" and
// "pre_tokenizer".
void read_pre_tokenizer(const Json& json, TokenizerData& data);

// Sets space_strip. Requires: the model and what read_pre_tokenizer sets were read.
void read_decoder(const Json& json, TokenizerData& data);

}  // namespace kvquant
