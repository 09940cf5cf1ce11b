// Random texts for property tests of tokenizers.
#pragma once

#include <rapidcheck.h>

#include <string>
#include <vector>

#include "model/utf8.h"

namespace kvquant {

// UTF-8 of any number of such characters.
inline rc::Gen<std::string> text_of(const rc::Gen<char32_t>& character) {
  return rc::gen::map(rc::gen::container<std::vector<char32_t>>(character),
                      [](const std::vector<char32_t>& characters) {
                        std::string text;
                        for (const char32_t c : characters) append_utf8(text, c);
                        return text;
                      });
}

}  // namespace kvquant
