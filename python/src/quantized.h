// QuantizedKVCache as Python holds it: a cache of its own, or the keys or values of an attention.
#pragma once

#include <memory>
#include <optional>

#include "arrays.h"
#include "guard.h"
#include "kvquant/attention.h"
#include "kvquant/quantizer.h"

namespace kvquant::python {

struct Attention {
  Attention(int64_t num_heads, int64_t head_dim, std::vector<float> codebook,
            const PrefillAttentionOptions& options)
      : attention(num_heads, head_dim, std::move(codebook), options) {}

  PrefillQuantizedAttention attention;
  Guard guard;
  Framework framework = Framework::kNumpy;  // of the last forward
};

class Quantized {
 public:
  Quantized(QuantizedKVCache cache, Framework framework)
      : own_(std::move(cache)), guard_(std::make_shared<Guard>()), framework_(framework) {}
  Quantized(std::shared_ptr<Attention> attention, CacheSide side, Framework framework)
      : attention_(std::move(attention)), side_(side), framework_(framework) {}

  Framework framework() const { return framework_; }
  const QuantizedKVCache& cache() const;
  // Throws std::invalid_argument when it belongs to an attention.
  QuantizedKVCache& own();

  // fn(cache) under the guard.
  template <class Fn>
  auto read(Fn&& fn) const {
    return guard().run([&] { return fn(cache()); });
  }
  Guard& guard() const { return attention_ ? attention_->guard : *guard_; }

 private:
  std::optional<QuantizedKVCache> own_;
  std::shared_ptr<Guard> guard_;
  std::shared_ptr<Attention> attention_;
  CacheSide side_ = CacheSide::kKeys;
  Framework framework_;
};

}  // namespace kvquant::python
