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

// out[i] = factor * bytes[i] for 8 bytes, signed ones or unsigned.
template <class Byte>
HWY_INLINE void multiply_8_bytes(const Byte* bytes, float factor, float* out) {
  const hn::CappedTag<float, 8> d;
  const hn::RebindToSigned<decltype(d)> d32;
  const hn::Rebind<Byte, decltype(d)> d8;
  for (std::size_t i = 0; i < 8; i += hn::Lanes(d)) {
    const auto whole = hn::ConvertTo(d, hn::PromoteTo(d32, hn::LoadU(d8, bytes + i)));
    hn::StoreU(hn::Mul(whole, hn::Set(d, factor)), d, out + i);
  }
}

// The same for 16 bytes, those with even numbers and those with odd ones apart.
template <class Byte>
HWY_INLINE void multiply_16_bytes(const Byte* bytes, float factor, float* const* out) {
  alignas(16) static constexpr std::uint8_t kEvenThenOdd[16] = {0, 2, 4, 6, 8, 10, 12, 14,
                                                                1, 3, 5, 7, 9, 11, 13, 15};
  const hn::FixedTag<std::uint8_t, 16> d;
  const auto all = hn::LoadU(d, reinterpret_cast<const std::uint8_t*>(bytes));
  alignas(16) Byte sorted[16];
  hn::Store(hn::TableLookupBytes(all, hn::Load(d, kEvenThenOdd)), d,
            reinterpret_cast<std::uint8_t*>(sorted));
  multiply_8_bytes(sorted, factor, out[0]);
  multiply_8_bytes(sorted + 8, factor, out[1]);
}

// Calls body(tag, i) over 32 bytes in whole vectors of at most 32 bytes.
template <class Body>
HWY_INLINE void for_32_bytes(const Body& body) {
  const hn::CappedTag<std::uint8_t, 32> d;
  for (std::size_t i = 0; i < 32; i += hn::Lanes(d)) body(d, i);
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

// A tile of the formats with blocks of 32: unpacks n_blocks blocks, clears the rest of the tile.
template <class Format>
HWY_INLINE void unpack_small_blocks(const std::uint8_t* data, std::size_t n_blocks,
                                    const TileRow& tile) {
  for (std::size_t b = 0; b < n_blocks; ++b) {
    Format::unpack_block(data + b * Format::kBlockBytes, b * 32, tile);
  }
  for (std::size_t b = n_blocks; b < kTile / 32; ++b) {
    std::memset(tile.q + b * 32, 0, 32);
    set_scale<32>(tile, b * 32, 0.0f);
    if (Format::kOffset) set_offset<32>(tile, b * 32, 0.0f);
  }
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

// How many weights a block of the format has: the longest of 32 takes 34 bytes, the shortest of 256
// takes 66.
template <class Format>
constexpr std::size_t kBlockSize = Format::kBlockBytes < 64 ? 32 : 256;

HWY_INLINE std::uint32_t load_u32(const std::uint8_t* bytes) {
  std::uint32_t value;
  std::memcpy(&value, bytes, 4);
  return value;
}

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
