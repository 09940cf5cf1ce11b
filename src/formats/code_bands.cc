#include "formats/code_bands.h"

namespace kvquant {

int band_code_at(const uint8_t* tile, const CodeBands& bands, int64_t token, int64_t channel) {
  int code = 0;
  for_each_band(bands, [&](const CodeBand& band) {
    const int64_t within = channel - band.first_channel;
    if (within < 0 || within >= band.num_channels) return;
    const CodePlace place = code_place(KvSide::kValue, band.num_channels, token, within);
    const int widening = 255 / ((1 << band.bits) - 1);
    code = code_at(tile + band.offset, band.bits, place) * widening;
  });
  return code;
}

}  // namespace kvquant
