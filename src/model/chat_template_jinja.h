// A Jinja chat template cut into statements, literals and variables, written one way whatever
// quotes, spacing or whitespace control the file uses.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace kvquant {

struct JinjaItem {
  enum class Kind { kStatement, kLiteral, kVariable };
  Kind kind;
  std::string text;  // statements and variables without spaces, a.b for a['b']; literals as printed

  bool operator==(const JinjaItem&) const = default;
};

// Operands of an output's "+" and "~" are items of their own, literals that follow each other one.
// nullopt when a tag is not closed.
std::optional<std::vector<JinjaItem>> read_jinja(std::string_view jinja);

// Text of a quoted literal; nullopt when it is something else.
std::optional<std::string> unquote_jinja(std::string_view code);

}  // namespace kvquant
