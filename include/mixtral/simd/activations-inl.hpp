// Per target: activations quantised to 8 bits, a token alone or as many as a vector has lanes.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

std::size_t lanes() { return hn::Lanes(DF()); }

struct Scale {
  float value, inverse;
};

// With which numbers up to `maximum` fill [-127, 127].
HWY_INLINE Scale full_scale(float maximum) {
  return {maximum / 127.0f, maximum > 0.0f ? 127.0f / maximum : 0.0f};
}

// The smallest power of two for them, from 2^-100 to 2^100.
HWY_INLINE Scale power_of_two_scale(float maximum) {
  const float least = maximum / 127.0f;
  std::uint32_t bits;
  std::memcpy(&bits, &least, sizeof bits);
  const std::uint32_t exponent =
      HWY_MIN(HWY_MAX((bits + 0x7fffffu) >> 23, 127u - 100u), 127u + 100u);
  const std::uint32_t value = exponent << 23, inverse = (254u - exponent) << 23;
  Scale scale;
  std::memcpy(&scale.value, &value, sizeof value);
  std::memcpy(&scale.inverse, &inverse, sizeof inverse);
  return scale;
}

// Quantises 32 floats with the scale that scale_for(maximum) gives, and returns it. What is not a number
// (an infinity times 0, too) becomes 0, what is too large for the scale the largest.
template <class ScaleFor>
HWY_INLINE float quantize_32(const float* x, const ScaleFor& scale_for, std::int8_t* q,
                             std::int32_t* half_sums) {
  const DF df;
  const DI32 d32;
  const hn::Rebind<std::int8_t, DF> d8;
  const std::size_t n = hn::Lanes(df);
  const auto number = [](VF v) MIXTRAL_LAMBDA { return hn::IfThenElseZero(hn::Eq(v, v), v); };
  VF largest = hn::Zero(df);
  for (std::size_t i = 0; i < 32; i += n) {
    largest = hn::Max(largest, hn::Abs(number(hn::LoadU(df, x + i))));
  }
  const Scale scale = scale_for(hn::GetLane(hn::MaxOfLanes(df, largest)));
  const auto inverse = hn::Set(df, scale.inverse);
  const auto most = hn::Set(df, 127.0f), least = hn::Set(df, -127.0f);
  for (std::size_t half = 0; half < 2; ++half) {
    auto sum = hn::Zero(d32);
    for (std::size_t i = half * 16; i < half * 16 + 16; i += n) {
      const auto scaled = number(hn::Mul(hn::LoadU(df, x + i), inverse));
      const auto whole = hn::NearestInt(hn::Max(hn::Min(scaled, most), least));
      hn::StoreU(hn::DemoteTo(d8, whole), d8, q + i);
      sum = hn::Add(sum, whole);
    }
    half_sums[half] = hn::GetLane(hn::SumOfLanes(d32, sum));
  }
  return scale.value;
}

void quantize(const float* x, std::size_t first, std::size_t n, std::size_t cols, std::uint8_t* out,
              std::size_t n_tokens, std::size_t token) {
  HWY_ALIGN float rest[32] = {};
  HWY_ALIGN std::int8_t q[32];
  const std::size_t end = first + n == cols ? padded(cols) : first + n;
  for (std::size_t col = first; col < end; col += 32) {
    const float* from = x + (col - first);
    if (first + n < col + 32) {
      const std::size_t left = first + n > col ? first + n - col : 0;
      std::memset(rest, 0, sizeof rest);
      std::memcpy(rest, from, left * sizeof(float));
      from = rest;
    }
    std::uint8_t* tile = out + col / kTile * kTokenTileBytes * n_tokens;
    const std::size_t block = col % kTile / 32;
    std::int32_t sums[2];
    tile_scale(tile, n_tokens)[block * n_tokens + token] =
        quantize_32(from, power_of_two_scale, q, sums);
    for (std::size_t half = 0; half < 2; ++half) {
      tile_q_sum(tile, n_tokens)[(half * kBlocksPerTile + block) * n_tokens + token] =
          static_cast<std::int16_t>(sums[half]);
    }
    for (std::size_t quad = 0; quad < 8; ++quad) {
      std::memcpy(tile + ((block * 8 + quad) * n_tokens + token) * kQuad, q + quad * kQuad, kQuad);
    }
  }
}

// out[i * stride] = in[i].
template <class T>
HWY_INLINE void spread(const T* in, std::size_t n, std::size_t stride, T* out) {
  for (std::size_t i = 0; i < n; ++i) out[i * stride] = in[i];
}

void pack(const std::uint8_t* const* tokens, std::size_t n, std::size_t cols, std::uint8_t* group) {
  const std::size_t n_lanes = lanes();
  const std::size_t n_tiles = padded(cols) / kTile;
  if (n < n_lanes) std::memset(group, 0, n_tiles * kTokenTileBytes * n_lanes);
  for (std::size_t i = 0; i < n_tiles; ++i) {
    std::uint8_t* to = group + i * kTokenTileBytes * n_lanes;
    for (std::size_t t = 0; t < n; ++t) {
      const std::uint8_t* from = tokens[t] + i * kTokenTileBytes;
      for (std::size_t quad = 0; quad < kQuadsPerTile; ++quad) {
        std::memcpy(to + (quad * n_lanes + t) * kQuad, from + quad * kQuad, kQuad);
      }
      spread(tile_scale(from, 1), kBlocksPerTile, n_lanes, tile_scale(to, n_lanes) + t);
      spread(tile_q_sum(from, 1), 2 * kBlocksPerTile, n_lanes, tile_q_sum(to, n_lanes) + t);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
