// Per target: what every block format unpacks to, and the helpers that they share.
//
// Weights are unpacked for as many rows at a time as a vector has lanes, n. First the rows' bytes change
// places, so that a vector has the same four bytes of each row; then all of a format's masks and
// shifts, of quants and of scales, are the same in all lanes, and so are the columns that come out.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

using DU32 = hn::RebindToUnsigned<DI32>;
using VU32 = hn::Vec<DU32>;

// For what many formats share and has to be called for each tile: measured, with AVX2 inlining makes decoding a
// tenth faster, with AVX-512 it does not. (Differs between targets.)
#undef MIXTRAL_TILE_INLINE
#if HWY_ARCH_X86 && HWY_TARGET != HWY_AVX2
#define MIXTRAL_TILE_INLINE HWY_NOINLINE
#else
#define MIXTRAL_TILE_INLINE HWY_INLINE
#endif

// out[i * n + r] = the four bytes at data + r * row_bytes + 4 * i, i < n_words, for n rows.
#if HWY_HAVE_SCALABLE
MIXTRAL_TILE_INLINE void transpose_words(const std::uint8_t* data, std::size_t row_bytes,
                                         std::size_t n_words, std::uint32_t* out) {
  const std::size_t n = hn::Lanes(DU32());
  for (std::size_t r = 0; r < n; ++r) {
    for (std::size_t i = 0; i < n_words; ++i) {
      std::memcpy(out + i * n + r, data + r * row_bytes + 4 * i, 4);
    }
  }
}
#else
// Vector k gets the k-th words of the 128 bits at the same place in a, b, c and e.
HWY_INLINE void transpose_blocks(VU32 a, VU32 b, VU32 c, VU32 e, VU32& v0, VU32& v1, VU32& v2,
                                 VU32& v3) {
  const DU32 d;
  const hn::Repartition<std::uint64_t, DU32> d64;
  const auto low_ab = hn::BitCast(d64, hn::InterleaveLower(d, a, b));
  const auto high_ab = hn::BitCast(d64, hn::InterleaveUpper(d, a, b));
  const auto low_ce = hn::BitCast(d64, hn::InterleaveLower(d, c, e));
  const auto high_ce = hn::BitCast(d64, hn::InterleaveUpper(d, c, e));
  v0 = hn::BitCast(d, hn::InterleaveLower(d64, low_ab, low_ce));
  v1 = hn::BitCast(d, hn::InterleaveUpper(d64, low_ab, low_ce));
  v2 = hn::BitCast(d, hn::InterleaveLower(d64, high_ab, high_ce));
  v3 = hn::BitCast(d, hn::InterleaveUpper(d64, high_ab, high_ce));
}

// Four words.
HWY_INLINE void transpose_4_words(const std::uint8_t* data, std::size_t row_bytes,
                                  std::uint32_t* out) {
  const DU32 d;
  const std::size_t n = hn::Lanes(d);
  // Of rows r, r + 4 ..., one in each 128 bits.
  const auto load = [&](std::size_t r) MIXTRAL_LAMBDA {
    const hn::FixedTag<std::uint8_t, 16> d16;
    const hn::FixedTag<std::uint32_t, 4> d4;
    const auto row = [&](std::size_t i) MIXTRAL_LAMBDA {
      return hn::BitCast(d4, hn::LoadU(d16, data + (r + 4 * i) * row_bytes));
    };
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3
    const hn::FixedTag<std::uint32_t, 8> d8;
    return hn::Combine(d, hn::Combine(d8, row(3), row(2)), hn::Combine(d8, row(1), row(0)));
#elif HWY_TARGET == HWY_AVX2
    return hn::Combine(d, row(1), row(0));
#else
    static_assert(hn::MaxLanes(DU32()) == 4, "128 bits");
    return row(0);
#endif
  };
  VU32 v0, v1, v2, v3;
  transpose_blocks(load(0), load(1), load(2), load(3), v0, v1, v2, v3);
  hn::Store(v0, d, out), hn::Store(v1, d, out + n);
  hn::Store(v2, d, out + 2 * n), hn::Store(v3, d, out + 3 * n);
}

#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3
// As many as there are lanes: half the time of four times four.
HWY_INLINE void transpose_16_words(const std::uint8_t* data, std::size_t row_bytes,
                                   std::uint32_t* out) {
  const DU32 d;
  const auto four_rows = [&](VU32& v0, VU32& v1, VU32& v2, VU32& v3) MIXTRAL_LAMBDA {
    const auto load = [&](std::size_t r) MIXTRAL_LAMBDA {
      return VU32{in_register(hn::BitCast(DI8(), hn::LoadU(DU8(), data + r * row_bytes))).raw};
    };
    transpose_blocks(load(0), load(1), load(2), load(3), v0, v1, v2, v3);
    data += 4 * row_bytes;
  };
  VU32 a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, e0, e1, e2, e3;
  four_rows(a0, a1, a2, a3), four_rows(b0, b1, b2, b3);
  four_rows(c0, c1, c2, c3), four_rows(e0, e1, e2, e3);
  const auto join = [&](VU32 a, VU32 b, VU32 c, VU32 e, std::size_t k) MIXTRAL_LAMBDA {
    const auto first_ab = _mm512_shuffle_i32x4(a.raw, b.raw, 0x44);
    const auto last_ab = _mm512_shuffle_i32x4(a.raw, b.raw, 0xee);
    const auto first_ce = _mm512_shuffle_i32x4(c.raw, e.raw, 0x44);
    const auto last_ce = _mm512_shuffle_i32x4(c.raw, e.raw, 0xee);
    hn::Store(VU32{_mm512_shuffle_i32x4(first_ab, first_ce, 0x88)}, d, out + k * 16);
    hn::Store(VU32{_mm512_shuffle_i32x4(first_ab, first_ce, 0xdd)}, d, out + (4 + k) * 16);
    hn::Store(VU32{_mm512_shuffle_i32x4(last_ab, last_ce, 0x88)}, d, out + (8 + k) * 16);
    hn::Store(VU32{_mm512_shuffle_i32x4(last_ab, last_ce, 0xdd)}, d, out + (12 + k) * 16);
  };
  join(a0, b0, c0, e0, 0), join(a1, b1, c1, e1, 1);
  join(a2, b2, c2, e2, 2), join(a3, b3, c3, e3, 3);
}
#endif

// At least four words, since the last four are read together.
MIXTRAL_TILE_INLINE void transpose_words(const std::uint8_t* data, std::size_t row_bytes,
                                         std::size_t n_words, std::uint32_t* out) {
  const std::size_t n = hn::Lanes(DU32());
  std::size_t i = 0;
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3
  for (; i + 16 <= n_words; i += 16) transpose_16_words(data + 4 * i, row_bytes, out + i * n);
  if (n_words >= 16 && i + 8 < n_words) {
    i = n_words - 16;
    return transpose_16_words(data + 4 * i, row_bytes, out + i * n);
  }
#endif
  for (; i < n_words; i += 4) {
    const std::size_t first = HWY_MIN(i, n_words - 4);
    transpose_4_words(data + 4 * first, row_bytes, out + first * n);
  }
}
#endif

// to[c * to_stride + r] = from[r * from_stride + c] for r, c < n, where n is the number of lanes.
HWY_INLINE void transpose(const float* from, std::size_t from_stride, float* to,
                          std::size_t to_stride) {
  const DF df;
  const std::size_t n = hn::Lanes(df);
  // Taking all even elements before all odd ones turns the bits of an element's number by one place;
  // as often as a row's number has bits, rows and columns have changed places.
  HWY_ALIGN float buffer[2][kMaxLanes * kMaxLanes];
  for (std::size_t bit = 1, side = 0; bit < n; bit *= 2, side ^= 1) {
    const bool last = bit * 2 >= n;
    float* target = last ? to : buffer[side];
    const std::size_t stride = last ? to_stride : n;
    for (std::size_t k = 0; k < n / 2; ++k) {
      const auto a = hn::LoadU(df, from + 2 * k * from_stride);
      const auto b = hn::LoadU(df, from + (2 * k + 1) * from_stride);
      hn::Store(hn::ConcatEven(df, b, a), df, target + k * stride);
      hn::Store(hn::ConcatOdd(df, b, a), df, target + (n / 2 + k) * stride);
    }
    from = target;
    from_stride = stride;
  }
}

// A tile of the rows as the file has it, [word][row].
struct PackedRows {
  const std::uint32_t* words;

  HWY_INLINE VU32 word(std::size_t i) const {
    const DU32 d;
    return hn::Load(d, words + i * hn::Lanes(d));
  }

  // What begins at `offset`, a multiple of four.
  HWY_INLINE PackedRows from(std::size_t offset) const {
    return {words + offset / 4 * hn::Lanes(DU32())};
  }

  // From the first block of a step of a format with blocks of 32: two, since these take whole words.
  template <class Format>
  HWY_INLINE PackedRows blocks(std::size_t step) const {
    return from(step * 2 * Format::kBlockBytes);
  }

  // The four bytes from `offset` on, a multiple of two.
  HWY_INLINE VU32 bytes(std::size_t offset) const {
    if (offset % 4 == 0) return word(offset / 4);
    return hn::Or(hn::ShiftRight<16>(word(offset / 4)), hn::ShiftLeft<16>(word(offset / 4 + 1)));
  }

  // The half-precision numbers at `offset`, a multiple of two.
  HWY_INLINE VF half(std::size_t offset) const {
    const auto v = word(offset / 4);
    return half_bits_to_floats(
        DF(), offset % 4 == 0 ? hn::And(v, hn::Set(DU32(), 0xffff)) : hn::ShiftRight<16>(v));
  }
};

// Signed quants in the form that the dot product wants: 128 higher where it takes unsigned ones.
HWY_INLINE VU32 signed_quad(VU32 v) {
  return kUnsignedDot ? hn::Xor(v, hn::Set(DU32(), 0x80808080u)) : v;
}

// Where they are unpacked to: weight[i] = scale * (q[i] - zero) - offset, where zero is the format's and
// there are a scale for every kScaleColumns columns and, if kOffsetColumns is not 0, an offset for every
// so many: for blocks of 32, or for their first halves, then for their second halves.
struct TileScales {
  float* scales[2];   // [half][block][row]
  float* offsets[2];  // the same

  HWY_INLINE void set_scale(VF v, std::size_t half, std::size_t block) const {
    const DF d;
    hn::Store(v, d, scales[half] + block * hn::Lanes(d));
  }
  HWY_INLINE void set_offset(VF v, std::size_t half, std::size_t block) const {
    const DF d;
    hn::Store(v, d, offsets[half] + block * hn::Lanes(d));
  }
};

// v & bits, and (v >> kShift) & bits or, where kShift < 0, (v << -kShift) & bits, in each byte.
HWY_INLINE VU32 and_bytes(VU32 v, std::uint32_t bits) {
  return hn::And(v, hn::Set(DU32(), bits * 0x01010101u));
}
template <int kShift>
HWY_INLINE VU32 shifted_bits(VU32 v, std::uint32_t bits) {
  constexpr int kRight = kShift > 0 ? kShift : 0, kLeft = kShift < 0 ? -kShift : 0;
  if (kShift > 0) return and_bytes(hn::ShiftRight<kRight>(v), bits);
  return and_bytes(kShift < 0 ? hn::ShiftLeft<kLeft>(v) : v, bits);
}

// (v >> shift) & bits in each byte, for code that several shifts share.
HWY_INLINE VU32 bits_from(VU32 v, std::size_t shift, std::uint32_t bits) {
  return and_bytes(hn::Shr(v, hn::Set(DU32(), static_cast<std::uint32_t>(shift))), bits);
}

// Calls body with 0 to kCount - 1 as constants.
template <class Body, std::size_t... i>
HWY_INLINE void for_constants(const Body& body, std::index_sequence<i...>) {
  (body(std::integral_constant<std::size_t, i>()), ...);
}
template <std::size_t kCount, class Body>
HWY_INLINE void for_constants(const Body& body) {
  for_constants(body, std::make_index_sequence<kCount>());
}

// Byte k of each lane.
template <std::size_t k>
HWY_INLINE VF byte_to_float(VU32 v) {
  const auto byte = hn::And(hn::ShiftRight<8 * k>(v), hn::Set(DU32(), 0xff));
  return hn::ConvertTo(DF(), hn::BitCast(DI32(), byte));
}
template <std::size_t k>
HWY_INLINE VF signed_byte_to_float(VU32 v) {
  const auto top = hn::BitCast(DI32(), hn::ShiftLeft<24 - 8 * k>(v));
  return hn::ConvertTo(DF(), hn::ShiftRight<24>(top));
}

// The same as add_scaled_quads() takes it.
template <std::size_t k>
struct DotScalePlaces {
  std::uint8_t of[16] = {};  // each byte's in the same 128 bits, or where there is none

  constexpr DotScalePlaces() {
    for (std::size_t i = 0; i < 16; ++i) {
      const bool wanted = i % (kSumsQuads ? 4 : 2) == 0;
      of[i] = static_cast<std::uint8_t>(wanted ? i / 4 * 4 + k : 0x80);
    }
  }
};
template <std::size_t k>
HWY_INLINE VI32 byte_to_dot_scale(VU32 v) {
  alignas(16) static constexpr DotScalePlaces<k> kPlaces;
  const DU8 d;
  const auto scale = hn::TableLookupBytesOr0(hn::BitCast(d, v), hn::LoadDup128(d, kPlaces.of));
  return hn::BitCast(DI32(), scale);
}

// Of a block of a format whose blocks of 32 begin with their scale and, if it has an offset, the least weight.
template <class Format>
HWY_INLINE VF block_scale(const PackedRows& rows, std::size_t block) {
  return rows.blocks<Format>(block / 2).half(block % 2 * Format::kBlockBytes);
}
template <class Format>
HWY_INLINE VF block_offset(const PackedRows& rows, std::size_t block) {
  return hn::Neg(rows.blocks<Format>(block / 2).half(block % 2 * Format::kBlockBytes + 2));
}

template <class Format>
HWY_INLINE void unpack_block_scales(const PackedRows& rows, const TileScales& scales) {
  MIXTRAL_UNROLL
  for (std::size_t block = 0; block < kBlocksPerTile; ++block) {
    scales.set_scale(block_scale<Format>(rows, block), 0, block);
    if (Format::kOffsetColumns > 0) scales.set_offset(block_offset<Format>(rows, block), 0, block);
  }
}

// Quad i of a block of 32 columns, whose 16 bytes begin at `offset`: the low nibbles come first.
HWY_INLINE VU32 nibble_quad(const PackedRows& rows, std::size_t offset, std::size_t i) {
  const auto packed = rows.bytes(offset + i % 4 * 4);
  return i < 4 ? shifted_bits<0>(packed, 0x0f) : shifted_bits<4>(packed, 0x0f);
}

// 16 in the bytes of quad i of 32 columns whose bits are set.
HWY_INLINE VU32 fifth_bits(VU32 bits, std::size_t i) {
  const DU32 d;
  // Bits 0 to 3 get to where bytes begin, once each; what else there is, is masked away.
  const auto four = hn::And(hn::ShiftRightSame(bits, static_cast<int>(4 * i)), hn::Set(d, 15));
  const auto spread = hn::Mul(four, hn::Set(d, 0x00204081u));
  return hn::ShiftLeft<4>(and_bytes(spread, 1));
}

// One row of a tile, for formats that look points up in grids: q[column], scales[half][block].
struct TileRow {
  std::int8_t* q;
  float* scales[2];
};

// Sets the scale of kColumns columns from column `first` of the tile.
template <std::size_t kColumns>
HWY_INLINE void set_scale(const TileRow& tile, std::size_t first, float scale) {
  tile.scales[first % kBlock / kColumns][first / kBlock] = scale;
}

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

// Stores 16 magnitudes, eight in a word; negative where a bit of `signs` is set.
HWY_INLINE void store_points(std::uint64_t first, std::uint64_t second, std::uint32_t signs,
                             std::int8_t* q) {
  const hn::CappedTag<std::uint8_t, 16> d;
  const hn::RebindToSigned<decltype(d)> ds;
  const hn::Repartition<std::uint64_t, decltype(d)> d64;
  alignas(16) const std::uint64_t words[2] = {first, second};
  const auto magnitudes = hn::BitCast(d, hn::Load(d64, words));
  const auto minus = spread_bits(d, signs);
  const auto points = hn::Sub(hn::Xor(magnitudes, minus), minus);
  hn::StoreU(hn::BitCast(ds, kUnsignedDot ? hn::Xor(points, hn::Set(d, 0x80)) : points), ds, q);
}

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
