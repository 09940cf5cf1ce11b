// SHA-256 (FIPS 180-4): names a text so that others can tell whether they have the same one.
#pragma once

#include <string>
#include <string_view>

namespace kvquant {

std::string sha256_hex(std::string_view bytes);  // 64 lowercase hex digits

}  // namespace kvquant
