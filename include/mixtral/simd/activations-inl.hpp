// Per target: activations quantised to 8 bits, a token alone or as many as a vector has lanes.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

std::size_t lanes() { return hn::Lanes(DF()); }

// The smallest powers of two with which numbers up to these fill [-127, 127], from 2^-100 to 2^100, and
// their inverses.
template <class D>
HWY_INLINE void power_of_two_scales(D d, hn::Vec<D> largest, hn::Vec<D>& scales,
                                    hn::Vec<D>& inverses) {
  const hn::RebindToSigned<D> d32;
  const auto least = hn::BitCast(d32, hn::Div(largest, hn::Set(d, 127.0f)));
  const auto next = hn::ShiftRight<23>(hn::Add(least, hn::Set(d32, 0x7fffff)));
  const auto exponent = hn::Min(hn::Max(next, hn::Set(d32, 127 - 100)), hn::Set(d32, 127 + 100));
  scales = hn::BitCast(d, hn::ShiftLeft<23>(exponent));
  inverses = hn::BitCast(d, hn::ShiftLeft<23>(hn::Sub(hn::Set(d32, 254), exponent)));
}

struct Scale {
  float value, inverse;
};
HWY_INLINE Scale power_of_two_scale(float largest) {
  const hn::CappedTag<float, 1> d;
  auto scale = hn::Zero(d), inverse = scale;
  power_of_two_scales(d, hn::Set(d, largest), scale, inverse);
  return {hn::GetLane(scale), hn::GetLane(inverse)};
}

// With which numbers up to `largest` fill [-127, 127].
HWY_INLINE Scale full_scale(float largest) {
  return {largest / 127.0f, largest > 0.0f ? 127.0f / largest : 0.0f};
}

// What is not a number becomes 0.
template <class V>
HWY_INLINE V number(V v) {
  return hn::IfThenElseZero(hn::Eq(v, v), v);
}
HWY_INLINE VI32 quantize_vector(VF x, VF inverse) {
  const DF df;
  const auto scaled = number(hn::Mul(x, inverse));
  return hn::NearestInt(hn::Max(hn::Min(scaled, hn::Set(df, 127.0f)), hn::Set(df, -127.0f)));
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
  VF largest = hn::Zero(df);
  for (std::size_t i = 0; i < 32; i += n) {
    largest = hn::Max(largest, hn::Abs(number(hn::LoadU(df, x + i))));
  }
  const Scale scale = scale_for(hn::GetLane(hn::MaxOfLanes(df, largest)));
  const auto inverse = hn::Set(df, scale.inverse);
  for (std::size_t half = 0; half < 2; ++half) {
    auto sum = hn::Zero(d32);
    for (std::size_t i = half * 16; i < half * 16 + 16; i += n) {
      const auto whole = quantize_vector(hn::LoadU(df, x + i), inverse);
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

// Lanes are tokens: nothing has to be found or summed across lanes.
void quantize_group(const float* x, std::size_t stride, std::size_t n_tokens, std::size_t first,
                    std::uint8_t* group) {
  const DF df;
  const DI32 d32;
  const DI8 d8;
  const hn::Rebind<std::int16_t, DF> d16;
  const std::size_t n = hn::Lanes(df);
  HWY_ALIGN float rows[kMaxLanes * kBlock];
  if (n_tokens < n) {
    std::memset(rows, 0, sizeof rows);
    for (std::size_t t = 0; t < n_tokens; ++t) {
      std::memcpy(rows + t * kBlock, x + t * stride, kBlock * sizeof(float));
    }
    x = rows;
    stride = kBlock;
  }
  HWY_ALIGN float columns[kBlock * kMaxLanes];  // [column][token]
  for (std::size_t c = 0; c < kBlock; c += n) transpose(x + c, stride, columns + c * n, n);
  VF largest = hn::Zero(df);
  for (std::size_t c = 0; c < kBlock; ++c) {
    largest = hn::Max(largest, hn::Abs(number(hn::Load(df, columns + c * n))));
  }
  VF scales = hn::Zero(df), inverses = scales;
  power_of_two_scales(df, largest, scales, inverses);
  std::uint8_t* tile = group + first / kTile * kTokenTileBytes * n;
  const std::size_t block = first % kTile / kBlock;
  hn::Store(scales, df, tile_scale(tile, n) + block * n);
  std::int8_t* q = tile_q(tile) + block * kBlock * n;
  for (std::size_t half = 0; half < 2; ++half) {
    auto sum = hn::Zero(d32);
    for (std::size_t quad = half * 4; quad < half * 4 + 4; ++quad) {
      const auto column = [&](std::size_t k) MIXTRAL_LAMBDA {
        return quantize_vector(hn::Load(df, columns + (quad * kQuad + k) * n), inverses);
      };
      const auto a = column(0), b = column(1), c = column(2), e = column(3);
      sum = hn::Add(sum, hn::Add(hn::Add(a, b), hn::Add(c, e)));
      const auto byte = hn::Set(d32, 0xff);
      const auto low = hn::Or(hn::And(a, byte), hn::ShiftLeft<8>(hn::And(b, byte)));
      const auto high = hn::Or(hn::ShiftLeft<16>(hn::And(c, byte)), hn::ShiftLeft<24>(e));
      hn::Store(hn::BitCast(d8, hn::Or(low, high)), d8, q + quad * kQuad * n);
    }
    hn::StoreU(hn::DemoteTo(d16, sum), d16,
               tile_q_sum(tile, n) + (half * kBlocksPerTile + block) * n);
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
