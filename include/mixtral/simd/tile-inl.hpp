// Per target: what every block format unpacks to, and the helpers that they share.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

// Where a format unpacks 256 weights of one row to: weight[i] = scale * (q[i] - zero) - offset, where
// zero is the format's and there are a scale and, if the format has kOffset, an offset for every
// kScaleColumns columns: for blocks of 32, or for their first halves, then for their second halves.
struct TileRow {
  std::int8_t* q;
  float* scales[2];   // [half][block]
  float* offsets[2];  // the same
};

// Sets the scale, or the offset, of kColumns columns from column `first` of the tile.
template <std::size_t kColumns>
HWY_INLINE void set_scale(const TileRow& tile, std::size_t first, float scale) {
  tile.scales[first % kBlock / kColumns][first / kBlock] = scale;
}
template <std::size_t kColumns>
HWY_INLINE void set_offset(const TileRow& tile, std::size_t first, float offset) {
  tile.offsets[first % kBlock / kColumns][first / kBlock] = offset;
}

// Bytes shifted as pairs: bits come in from the neighbour and are to be masked away.
template <int kBits, class D>
HWY_INLINE hn::Vec<D> shift_right(D d, hn::Vec<D> v) {
  const hn::Repartition<std::uint16_t, D> d16;
  return hn::BitCast(d, hn::ShiftRight<kBits>(hn::BitCast(d16, v)));
}
template <int kBits, class D>
HWY_INLINE hn::Vec<D> shift_left(D d, hn::Vec<D> v) {
  const hn::Repartition<std::uint16_t, D> d16;
  return hn::BitCast(d, hn::ShiftLeft<kBits>(hn::BitCast(d16, v)));
}

// Sixteen bytes, such as the scales of a block.
using D16Bytes = hn::FixedTag<std::uint8_t, 16>;
using V16Bytes = hn::Vec<D16Bytes>;

// out_low[i] = low_factor * v[i] and out_high[i] = high_factor * v[8 + i] for i < 8; the bytes are
// signed ones if kSigned.
template <bool kSigned>
HWY_INLINE void multiply_bytes(V16Bytes v, float low_factor, float* out_low, float high_factor,
                               float* out_high) {
  const hn::CappedTag<float, 8> d;
  const hn::RebindToSigned<decltype(d)> d32;
  using Byte = std::conditional_t<kSigned, std::int8_t, std::uint8_t>;
  const hn::Rebind<Byte, decltype(d)> d8;
  alignas(16) Byte bytes[16];
  hn::Store(v, D16Bytes(), reinterpret_cast<std::uint8_t*>(bytes));
  for (std::size_t i = 0; i < 8; i += hn::Lanes(d)) {
    const auto low = hn::ConvertTo(d, hn::PromoteTo(d32, hn::LoadU(d8, bytes + i)));
    const auto high = hn::ConvertTo(d, hn::PromoteTo(d32, hn::LoadU(d8, bytes + 8 + i)));
    hn::StoreU(hn::Mul(low, hn::Set(d, low_factor)), d, out_low + i);
    hn::StoreU(hn::Mul(high, hn::Set(d, high_factor)), d, out_high + i);
  }
}

// Those of 16 scales or offsets with even numbers, then those with odd ones.
HWY_INLINE V16Bytes even_then_odd(V16Bytes v) {
  alignas(16) static constexpr std::uint8_t kOrder[16] = {0, 2, 4, 6, 8, 10, 12, 14,
                                                          1, 3, 5, 7, 9, 11, 13, 15};
  return hn::TableLookupBytes(v, hn::Load(D16Bytes(), kOrder));
}

// v & bits, and v | (bits & mask), in each byte.
template <class V>
HWY_INLINE V and_bytes(V v, std::uint8_t bits) {
  return hn::And(v, hn::Set(hn::DFromV<V>(), bits));
}
template <class V>
HWY_INLINE V or_bits(V v, V bits, std::uint8_t mask) {
  return hn::OrAnd(v, bits, hn::Set(hn::DFromV<V>(), mask));
}

// Stores unsigned quants as the tile's bytes.
template <class D>
HWY_INLINE void store_quants(hn::Vec<D> v, D, std::int8_t* to) {
  const hn::RebindToSigned<D> ds;
  hn::StoreU(hn::BitCast(ds, v), ds, to);
}

// Signed quants in the form that the dot product wants: 128 higher where it takes unsigned ones.
template <class D>
HWY_INLINE hn::Vec<D> signed_quants(D d, hn::Vec<D> v) {
  return kUnsignedDot ? hn::Xor(v, hn::Set(d, 0x80)) : v;
}
template <class D>
HWY_INLINE void store_signed_quants(hn::Vec<D> v, D d, std::int8_t* to) {
  store_quants(signed_quants(d, v), d, to);
}

// 64 quants, of which the first 32 and the last 32 are made of the same 32 bytes, or of 64 bytes: all
// in one vector, or in several. for_64_quants calls its body with something that
//   load(bytes)            loads 32 bytes, load_64(bytes) loads 64, load_two(a, b) 32 from each
//   shift_right<A, B>(v)   shifts those of the first 32 quants by A bits, the others by B, as
//                          shift_right above; shift_left alike
//   store(v, q)            stores them
// (Masks of ones, here and below, since g++ 12 warns of the intrinsics without.)
#if HWY_TARGET <= HWY_AVX3 && HWY_ARCH_X86
struct Quants64 {
  using D = hn::FixedTag<std::uint8_t, 64>;
  using V = hn::Vec<D>;

  static HWY_INLINE V load(const std::uint8_t* bytes) {
    return V{_mm512_maskz_broadcast_i64x4(
        0xff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes)))};
  }
  static HWY_INLINE V load_64(const std::uint8_t* bytes) { return hn::LoadU(D(), bytes); }
  static HWY_INLINE V load_two(const std::uint8_t* a, const std::uint8_t* b) {
    const auto first = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a));
    const auto second = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b));
    return V{_mm512_maskz_inserti64x4(0xff, _mm512_castsi256_si512(first), second, 1)};
  }
  static HWY_INLINE D d() { return D(); }
  template <int kFirst, int kLast>
  static HWY_INLINE V shift_right(V v) {
    return V{_mm512_srlv_epi16(v.raw, words(kFirst, kLast))};
  }
  template <int kFirst, int kLast>
  static HWY_INLINE V shift_left(V v) {
    return V{_mm512_sllv_epi16(v.raw, words(kFirst, kLast))};
  }
  static HWY_INLINE void store(V v, std::int8_t* q) { store_quants(v, D(), q); }

 private:
  static HWY_INLINE __m512i words(int first, int last) {
    return _mm512_maskz_inserti64x4(0xff, _mm512_set1_epi16(static_cast<short>(first)),
                                    _mm256_set1_epi16(static_cast<short>(last)), 1);
  }
};

template <class Body>
HWY_INLINE void for_64_quants(const Body& body) {
  body(Quants64());
}
#else
template <bool kLast32>
struct Quants32 {
  using D = hn::CappedTag<std::uint8_t, 32>;
  using V = hn::Vec<D>;
  std::size_t i;

  HWY_INLINE V load(const std::uint8_t* bytes) const { return hn::LoadU(D(), bytes + i); }
  HWY_INLINE V load_64(const std::uint8_t* bytes) const {
    return hn::LoadU(D(), bytes + (kLast32 ? 32 : 0) + i);
  }
  HWY_INLINE V load_two(const std::uint8_t* a, const std::uint8_t* b) const {
    return load(kLast32 ? b : a);
  }
  HWY_INLINE D d() const { return D(); }
  template <int kFirst, int kLast>
  HWY_INLINE V shift_right(V v) const {
    return simd::HWY_NAMESPACE::shift_right < kLast32 ? kLast : kFirst > (D(), v);
  }
  template <int kFirst, int kLast>
  HWY_INLINE V shift_left(V v) const {
    return simd::HWY_NAMESPACE::shift_left < kLast32 ? kLast : kFirst > (D(), v);
  }
  HWY_INLINE void store(V v, std::int8_t* q) const {
    store_quants(v, D(), q + (kLast32 ? 32 : 0) + i);
  }
};

template <class Body>
HWY_INLINE void for_64_quants(const Body& body) {
  const hn::CappedTag<std::uint8_t, 32> d;
  for (std::size_t i = 0; i < 32; i += hn::Lanes(d)) body(Quants32<false>{i});
  for (std::size_t i = 0; i < 32; i += hn::Lanes(d)) body(Quants32<true>{i});
}
#endif

HWY_INLINE std::uint32_t load_u32(const std::uint8_t* bytes) {
  std::uint32_t value;
  std::memcpy(&value, bytes, 4);
  return value;
}

// Byte i of the result has all bits set where bit i of `bits` is set, for 16 bits.
template <class D16>
HWY_INLINE hn::Vec<D16> spread_bits(D16 d, std::uint32_t bits) {
  alignas(16) static constexpr std::uint8_t kBit[16] = {1, 2, 4, 8, 16, 32, 64, 128,
                                                        1, 2, 4, 8, 16, 32, 64, 128};
  const hn::Repartition<std::uint64_t, D16> d64;
  // Byte 0 in the lower eight bytes, byte 1 in the upper eight.
  alignas(16) const std::uint64_t bytes[2] = {(bits & 0xffu) * 0x0101010101010101ull,
                                              ((bits >> 8) & 0xffu) * 0x0101010101010101ull};
  const auto select = hn::Load(d, kBit);
  const auto present = hn::And(hn::BitCast(d, hn::Load(d64, bytes)), select);
  return hn::VecFromMask(d, hn::Eq(present, select));
}

// out[i] = the half-precision number at data + i * kStride, for 8.
template <std::size_t kStride>
HWY_INLINE void halves_to_floats(const std::uint8_t* data, float* out) {
  const hn::CappedTag<float, 8> d;
  const auto half = [&](std::size_t i) {
    std::uint16_t bits;
    std::memcpy(&bits, data + i * kStride, 2);
    return std::uint64_t{bits};
  };
  alignas(16)
      const std::uint64_t words[2] = {half(0) | half(1) << 16 | half(2) << 32 | half(3) << 48,
                                      half(4) | half(5) << 16 | half(6) << 32 | half(7) << 48};
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(words);
  for (std::size_t i = 0; i < 8; i += hn::Lanes(d)) {
    hn::StoreU(halves_to_float_vector(d, bytes + 2 * i), d, out + i);
  }
}

// Unpacks 8 blocks of 32 nibbles: each has 16 bytes of them, kStride apart, of which the low nibbles
// are the first weights. finish(d, v, i, half) makes quants of nibbles: half of those of block i, or all
// of two blocks from there if a vector has 64 bytes.
#if HWY_TARGET <= HWY_AVX3_DL && HWY_ARCH_X86
template <std::size_t kStride>
struct NibbleOrder {
  // Where in 64 bytes the nibbles of two blocks are, each for the low and for the high ones.
  alignas(64) std::uint8_t from_start[64] = {};
  alignas(64) std::uint8_t to_end[64] = {};

  constexpr NibbleOrder() {
    for (std::size_t i = 0; i < 64; ++i) {
      from_start[i] = static_cast<std::uint8_t>(i / 32 * kStride + i % 16);
      to_end[i] = static_cast<std::uint8_t>(48 - kStride + from_start[i]);
    }
  }
};

template <std::size_t kStride, class Finish>
HWY_INLINE void unpack_nibbles(const std::uint8_t* data, std::int8_t* q, const Finish& finish) {
  static constexpr NibbleOrder<kStride> kOrder;
  const hn::FixedTag<std::uint8_t, 64> d;
  const hn::Repartition<std::uint64_t, decltype(d)> d64;
  alignas(64) static constexpr std::uint64_t kShift[8] = {
      0, 0, 0x0004000400040004, 0x0004000400040004, 0, 0, 0x0004000400040004, 0x0004000400040004};
  const auto shift = hn::Load(d64, kShift);
  const auto fifteen = hn::Set(d, 0x0f);
  MIXTRAL_UNROLL
  for (std::size_t i = 0; i < 8; i += 2) {
    // The last two are read from the end, so that nothing behind it is.
    const bool last = i == 6;
    const auto bytes = hn::LoadU(d, last ? data + 7 * kStride + 16 - 64 : data + i * kStride);
    const auto order = hn::Load(d, last ? kOrder.to_end : kOrder.from_start);
    const auto twice = _mm512_maskz_permutexvar_epi8(~__mmask64{0}, order.raw, bytes.raw);
    const hn::Vec<decltype(d)> nibbles{_mm512_srlv_epi16(twice, shift.raw)};
    store_quants(finish(d, hn::And(nibbles, fifteen), i, std::size_t{0}), d, q + i * 32);
  }
}

// 16 more for the quants of block i, of which there is one bit each at bits + i * kStride.
template <std::size_t kStride, class D>
HWY_INLINE hn::Vec<D> add_fifth_bits(D d, hn::Vec<D> v, const std::uint8_t* bits, std::size_t i,
                                     std::size_t) {
  const std::uint64_t mask =
      load_u32(bits + i * kStride) | std::uint64_t{load_u32(bits + (i + 1) * kStride)} << 32;
  return hn::Vec<D>{_mm512_mask_add_epi8(v.raw, mask, v.raw, hn::Set(d, 16).raw)};
}
#else
template <std::size_t kStride, class Finish>
HWY_INLINE void unpack_nibbles(const std::uint8_t* data, std::int8_t* q, const Finish& finish) {
  const D16Bytes d;
  const auto fifteen = hn::Set(d, 0x0f);
  for (std::size_t i = 0; i < 8; ++i) {
    const auto packed = hn::LoadU(d, data + i * kStride);
    store_quants(finish(d, hn::And(packed, fifteen), i, std::size_t{0}), d, q + i * 32);
    store_quants(finish(d, hn::And(shift_right<4>(d, packed), fifteen), i, std::size_t{1}), d,
                 q + i * 32 + 16);
  }
}

// 16 more for the quants of half of block i, of which there is one bit each at bits + i * kStride.
template <std::size_t kStride, class D>
HWY_INLINE hn::Vec<D> add_fifth_bits(D d, hn::Vec<D> v, const std::uint8_t* bits, std::size_t i,
                                     std::size_t half) {
  const std::uint32_t all = load_u32(bits + i * kStride);
  return hn::OrAnd(v, spread_bits(d, half == 0 ? all & 0xffffu : all >> 16), hn::Set(d, 16));
}
#endif

// A tile of the formats with blocks of 32, which begin with their scale and, if there is one, their
// offset with its sign turned: unpacks n_blocks blocks, clears the rest of the tile.
template <class Format>
HWY_INLINE void unpack_small_blocks(const std::uint8_t* data, std::size_t n_blocks,
                                    const TileRow& tile) {
  constexpr std::size_t kBytes = Format::kBlockBytes;
  if (n_blocks == kBlocksPerTile) {
    halves_to_floats<kBytes>(data, tile.scales[0]);
    if (Format::kOffset) halves_to_floats<kBytes>(data + 2, tile.offsets[0]);
  } else {
    for (std::size_t b = 0; b < kBlocksPerTile; ++b) {
      const bool inside = b < n_blocks;
      tile.scales[0][b] = inside ? half_to_float(data + b * kBytes) : 0.0f;
      if (Format::kOffset) {
        tile.offsets[0][b] = inside ? half_to_float(data + b * kBytes + 2) : 0.0f;
      }
    }
    std::memset(tile.q + n_blocks * 32, 0, kTile - n_blocks * 32);
  }
  if (Format::kOffset) {
    for (std::size_t b = 0; b < kBlocksPerTile; ++b) tile.offsets[0][b] = -tile.offsets[0][b];
  }
  if (n_blocks == kBlocksPerTile) return Format::unpack_8_blocks(data, tile.q);
  // So few that they are copied to where there is room for 8.
  std::uint8_t copy[8 * kBytes] = {};
  std::int8_t q[kTile];
  std::memcpy(copy, data, n_blocks * kBytes);
  Format::unpack_8_blocks(copy, q);
  std::memcpy(tile.q, q, n_blocks * 32);
}

// How many weights a block of the format has: the longest of 32 takes 34 bytes, the shortest of 256
// takes 66.
template <class Format>
constexpr std::size_t kBlockSize = Format::kBlockBytes < 64 ? 32 : 256;

// Stores 16 magnitudes, eight in a word; negative where a bit of `signs` is set.
HWY_INLINE void store_points(std::uint64_t first, std::uint64_t second, std::uint32_t signs,
                             std::int8_t* q) {
  const hn::CappedTag<std::uint8_t, 16> d;
  const hn::Repartition<std::uint64_t, decltype(d)> d64;
  alignas(16) const std::uint64_t words[2] = {first, second};
  const auto magnitudes = hn::BitCast(d, hn::Load(d64, words));
  const auto minus = spread_bits(d, signs);
  store_signed_quants(hn::Sub(hn::Xor(magnitudes, minus), minus), d, q);
}

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
