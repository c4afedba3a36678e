// Range asymmetric numeral systems over bytes, in lanes; kernels/entropy.py describes the code and makes its tables.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace trimtab {

constexpr int kPrecision = 12;    // frequencies add up to 2^12
constexpr size_t kLane = 4096;    // the most symbols of a lane
constexpr size_t kLaneHead = 3;   // words of a lane's state, below 2^48

constexpr size_t lanes_of(size_t count) { return (count + kLane - 1) / kLane; }

// For every lane the number of its words, then for every lane its state and its words. `frequencies` has a number for each
// of the 256 symbols.
std::vector<uint16_t> encode_lanes(const uint8_t* symbols, size_t count, const uint16_t* frequencies);

// Whether `words` have the lanes of `count` symbols, by their lengths.
bool holds_lanes(const uint16_t* words, size_t size, size_t count);

// The inverse of encode_lanes, for words that hold the lanes; says whether no lane is damaged.
bool decode_lanes(const uint16_t* words, const uint16_t* frequencies, uint8_t* symbols, size_t count);

}  // namespace trimtab
