// Per target: what every block format unpacks to, and the helpers that they share.

HWY_BEFORE_NAMESPACE();
namespace mixtral::simd {
namespace HWY_NAMESPACE {

// 256 weights of one row: weight[i] = scale * (q[i] - kZero) - offset, where kZero is the format's and
// there are a scale and, if the format has kOffset, an offset for every kScaleColumns columns.
struct QuantTile {
  HWY_ALIGN std::int8_t q[kTile];
  HWY_ALIGN float factors[2 * kGroupsPerTile];  // all scales, then all offsets
};

// Sets the scale, or the offset, of kColumns columns from column `first` of the tile.
template <std::size_t kColumns>
HWY_INLINE void set_scale(QuantTile& tile, std::size_t first, float scale) {
  tile.factors[first / kColumns] = scale;
}
template <std::size_t kColumns>
HWY_INLINE void set_offset(QuantTile& tile, std::size_t first, float offset) {
  tile.factors[kTile / kColumns + first / kColumns] = offset;
}

// out[i] = factor * bytes[i] for n bytes, signed ones or unsigned; n is 8 or 16.
template <class Byte>
HWY_INLINE void multiply_bytes(const Byte* bytes, std::size_t n, float factor, float* out) {
  const hn::CappedTag<float, 8> d;
  const hn::RebindToSigned<decltype(d)> d32;
  const hn::Rebind<Byte, decltype(d)> d8;
  for (std::size_t i = 0; i < n; i += hn::Lanes(d)) {
    const auto whole = hn::ConvertTo(d, hn::PromoteTo(d32, hn::LoadU(d8, bytes + i)));
    hn::StoreU(hn::Mul(whole, hn::Set(d, factor)), d, out + i);
  }
}

// Calls body(tag, i) over 32 bytes in whole vectors of at most 32 bytes.
template <class Body>
HWY_INLINE void for_32_bytes(const Body& body) {
  const hn::CappedTag<std::uint8_t, 32> d;
  for (std::size_t i = 0; i < 32; i += hn::Lanes(d)) body(d, i);
}

// Stores unsigned quants, all below 128, as the tile's signed bytes.
template <class D>
HWY_INLINE void store_quants(hn::Vec<D> v, D, std::int8_t* to) {
  const hn::RebindToSigned<D> ds;
  hn::StoreU(hn::BitCast(ds, v), ds, to);
}

// A tile of the formats with blocks of 32: unpacks n_blocks blocks, clears the rest of the tile.
template <class Format>
HWY_INLINE void unpack_small_blocks(const std::uint8_t* data, std::size_t n_blocks,
                                    QuantTile& tile) {
  for (std::size_t b = 0; b < n_blocks; ++b) {
    Format::unpack_block(data + b * Format::kBlockBytes, b * 32, tile);
  }
  for (std::size_t b = n_blocks; b < kTile / 32; ++b) {
    std::memset(tile.q + b * 32, 0, 32);
    set_scale<32>(tile, b * 32, 0.0f);
    set_offset<32>(tile, b * 32, 0.0f);
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
  store_quants(hn::Sub(hn::Xor(magnitudes, minus), minus), d, q);
}

}  // namespace HWY_NAMESPACE
}  // namespace mixtral::simd
HWY_AFTER_NAMESPACE();
