// Plain English words that tasks make keys, lists and passages of.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace kvquant {

// Lower-case letters only, no word twice in both lists together. Thread-safe.
std::span<const std::string_view> nouns();
std::span<const std::string_view> adjectives();
std::span<const std::string_view> first_names();  // with a capital; in neither of the others

}  // namespace kvquant
