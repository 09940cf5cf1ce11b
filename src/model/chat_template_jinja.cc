#include "model/chat_template_jinja.h"

#include <cctype>
#include <utility>

namespace kvquant {
namespace {

using Item = JinjaItem;

Item statement(std::string_view text) { return {Item::Kind::kStatement, std::string(text)}; }
Item literal(std::string_view text) { return {Item::Kind::kLiteral, std::string(text)}; }
Item variable(std::string_view text) { return {Item::Kind::kVariable, std::string(text)}; }

bool is_space(char c) { return std::isspace(static_cast<unsigned char>(c)) != 0; }
bool is_word(char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_'; }
bool is_quote(char c) { return c == '\'' || c == '"'; }

std::string_view trim_left(std::string_view text) {
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  return text;
}

std::string_view trim_right(std::string_view text) {
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return text;
}

// Offset behind the quoted text that starts at `start`; text.size() when it is not closed.
size_t end_of_quotes(std::string_view text, size_t start) {
  for (size_t i = start + 1; i < text.size(); ++i) {
    if (text[i] == '\\') {
      ++i;
    } else if (text[i] == text[start]) {
      return i + 1;
    }
  }
  return text.size();
}

// One spelling: single quotes, a.b for a['b'], no space beside punctuation.
std::string canonical(std::string_view code) {
  std::string result;
  for (size_t i = 0; i < code.size();) {
    if (is_quote(code[i])) {
      const size_t end = end_of_quotes(code, i);
      result += '\'';
      result += code.substr(i + 1, end < i + 2 ? 0 : end - i - 2);
      result += '\'';
      i = end;
    } else if (is_space(code[i])) {
      while (i < code.size() && is_space(code[i])) ++i;
      const bool between_words =
          !result.empty() && is_word(result.back()) && i < code.size() && is_word(code[i]);
      if (between_words) result += ' ';
    } else {
      result += code[i++];
    }
  }
  for (size_t open = 0; (open = result.find("['", open)) != std::string::npos;) {
    const size_t close = result.find("']", open + 2);
    if (close == std::string::npos) break;
    result = result.substr(0, open) + "." + result.substr(open + 2, close - open - 2) +
             result.substr(close + 2);
  }
  return result;
}

class JinjaReader {
 public:
  explicit JinjaReader(std::string_view jinja) : rest_(jinja) {
    if (rest_.ends_with('\n')) rest_.remove_suffix(1);  // Jinja drops it
  }

  // nullopt when a tag is not closed.
  std::optional<std::vector<Item>> read() {
    while (!rest_.empty()) {
      size_t open = 0;
      while ((open = rest_.find('{', open)) != std::string_view::npos &&
             (open + 1 == rest_.size() ||
              std::string_view("{%#").find(rest_[open + 1]) == std::string_view::npos)) {
        ++open;
      }
      if (open == std::string_view::npos) {
        add_literal(rest_);
        break;
      }
      if (!read_tag(open)) return std::nullopt;
    }
    return std::move(items_);
  }

 private:
  // Chat templates run with trim_blocks and lstrip_blocks.
  bool read_tag(size_t open) {
    const char kind = rest_[open + 1];
    const std::string_view before = rest_.substr(0, open);
    const size_t close = find_close(open + 2, kind == '{' ? '}' : kind);
    if (close == std::string_view::npos) return false;
    std::string_view code = rest_.substr(open + 2, close - open - 2);
    rest_.remove_prefix(close + 2);

    std::string_view text = before;
    if (code.starts_with('-')) {
      code.remove_prefix(1);
      text = trim_right(text);
    } else if (kind != '{') {
      const size_t indent = text.find_last_not_of(" \t");
      const bool starts_line =
          indent == std::string_view::npos ? at_line_start_ : text[indent] == '\n';
      if (starts_line) text = text.substr(0, indent + 1);  // npos + 1 is 0
    }
    add_literal(text);
    at_line_start_ = false;
    if (code.ends_with('-')) {
      code.remove_suffix(1);
      rest_ = trim_left(rest_);
    } else if (kind != '{' && rest_.starts_with('\n')) {
      rest_.remove_prefix(1);
      at_line_start_ = true;
    }
    if (kind == '%') items_.push_back(statement(canonical(trim_left(trim_right(code)))));
    if (kind == '{') add_output(code);
    return true;
  }

  // Offset of `mark` "}" outside quotes.
  size_t find_close(size_t start, char mark) const {
    for (size_t i = start; i + 1 < rest_.size();) {
      if (rest_[i] == mark && rest_[i + 1] == '}') return i;
      i = mark != '#' && is_quote(rest_[i]) ? end_of_quotes(rest_, i) : i + 1;
    }
    return std::string_view::npos;
  }

  // Operands of "+" and "~".
  void add_output(std::string_view code) {
    size_t start = 0;
    for (size_t i = 0; i <= code.size();) {
      if (i == code.size() || code[i] == '+' || code[i] == '~') {
        const std::string_view operand = trim_left(trim_right(code.substr(start, i - start)));
        if (const auto text = unquote_jinja(operand)) {
          add_literal(*text);
        } else {
          items_.push_back(variable(canonical(operand)));
        }
        start = ++i;
      } else {
        i = is_quote(code[i]) ? end_of_quotes(code, i) : i + 1;
      }
    }
  }

  void add_literal(std::string_view text) {
    if (text.empty()) return;
    if (!items_.empty() && items_.back().kind == Item::Kind::kLiteral) {
      items_.back().text += text;
    } else {
      items_.push_back(literal(text));
    }
  }

  std::string_view rest_;
  bool at_line_start_ = true;
  std::vector<Item> items_;
};

}  // namespace

std::optional<std::string> unquote_jinja(std::string_view code) {
  if (code.size() < 2 || !is_quote(code[0]) || end_of_quotes(code, 0) != code.size() ||
      code.back() != code[0]) {
    return std::nullopt;
  }
  std::string text;
  for (size_t i = 1; i + 1 < code.size(); ++i) {
    if (code[i] != '\\') {
      text += code[i];
      continue;
    }
    switch (code[++i]) {
      case 'n': text += '\n'; break;
      case 't': text += '\t'; break;
      case '\\':
      case '\'':
      case '"': text += code[i]; break;
      default: return std::nullopt;
    }
  }
  return text;
}

std::optional<std::vector<JinjaItem>> read_jinja(std::string_view jinja) {
  return JinjaReader(jinja).read();
}

}  // namespace kvquant
