#include "entropy.h"

#include <algorithm>

namespace trimtab {
namespace {

constexpr int kWord = 16;                       // bits that a state gives away at once
constexpr uint64_t kLowest = uint64_t{1} << 32;  // a state that has given bits away is at least that
constexpr uint32_t kSlots = 1 << kPrecision;

// Lanes that are decoded together: one symbol's steps wait for each other, those of different lanes do not.
constexpr int kTogether = 4;

// Lanes share the symbols evenly; the first ones have one more where they cannot.
size_t lane_length(size_t count, size_t lane) {
  const size_t lanes = lanes_of(count);
  return count / lanes + (lane < count % lanes);
}

// Appends the words of one lane, in the order in which they are read, with the state before them.
void encode_lane(const uint8_t* symbols, size_t count, const uint16_t* frequencies, const uint32_t* first,
                 std::vector<uint16_t>& words) {
  uint64_t state = 0;
  const size_t start = words.size();
  for (size_t i = count; i-- > 0;) {
    const uint64_t share = frequencies[symbols[i]];
    if (state >= share << (32 + kWord - kPrecision)) {
      words.push_back(static_cast<uint16_t>(state));
      state >>= kWord;
    }
    state = (state / share << kPrecision) + state % share + first[symbols[i]];
  }
  for (int digit = kLaneHead; digit-- > 0;) words.push_back(static_cast<uint16_t>(state >> (kWord * digit)));
  std::reverse(words.begin() + static_cast<ptrdiff_t>(start), words.end());
}

// What each slot of a state stands for: its symbol, its place among the symbol's slots, the symbol's frequency - 1.
struct Slots {
  uint32_t packed[kSlots];

  explicit Slots(const uint16_t* frequencies) {
    uint32_t slot = 0;
    for (uint32_t symbol = 0; symbol < 256; ++symbol) {
      const uint32_t share = frequencies[symbol];
      for (uint32_t place = 0; place < share && slot < kSlots; ++place)
        packed[slot++] = symbol | place << 8 | (share - 1) << 20;
    }
    std::fill(packed + slot, packed + kSlots, 0);
  }
};

struct Reader {
  uint64_t state = 0;
  const uint16_t *next = nullptr, *end = nullptr;

  // The next symbol. Without branches: whether a word is due is as good as random. `LAST`: there may be none left.
  template <bool LAST>
  uint8_t step(const Slots& slots) {
    constexpr uint16_t kNone = 0;
    const uint32_t entry = slots.packed[state & (kSlots - 1)];
    state = (state >> kPrecision) * ((entry >> 20) + 1) + (entry >> 8 & (kSlots - 1));
    const bool left = !LAST || next != end;
    const uint64_t due = (state < kLowest) & left;
    state = state << (kWord * due) | (*(left ? next : &kNone) & -due);
    next += due;
    return static_cast<uint8_t>(entry);
  }
};

// `count` symbols of each of some lanes, which follow each other in `symbols`.
template <int LANES>
void decode_together(Reader* lanes, size_t count, const Slots& slots, uint8_t* symbols) {
  Reader own[LANES];
  std::copy(lanes, lanes + LANES, own);
  for (size_t i = 0; i < count;) {
    ptrdiff_t words = own[0].end - own[0].next;
    for (const Reader& lane : own) words = std::min(words, lane.end - lane.next);
    // A symbol takes a word at most.
    const size_t sure = std::min(count, i + static_cast<size_t>(words));
    const auto advance = [&](size_t stop, auto step) {
      for (; i < stop; ++i) {
#pragma GCC unroll 4
        for (int lane = 0; lane < LANES; ++lane) symbols[lane * count + i] = step(own[lane]);
      }
    };
    if (words < 32)
      advance(count, [&](Reader& lane) { return lane.step<true>(slots); });
    else
      advance(sure, [&](Reader& lane) { return lane.step<false>(slots); });
  }
  std::copy(own, own + LANES, lanes);
}

}  // namespace

std::vector<uint16_t> encode_lanes(const uint8_t* symbols, size_t count, const uint16_t* frequencies) {
  uint32_t first[256], sum = 0;
  for (int symbol = 0; symbol < 256; ++symbol) first[symbol] = sum, sum += frequencies[symbol];
  const size_t lanes = lanes_of(count);
  std::vector<uint16_t> words(lanes);
  for (size_t lane = 0; lane < lanes; ++lane) {
    const size_t before = words.size(), length = lane_length(count, lane);
    encode_lane(symbols, length, frequencies, first, words);
    words[lane] = static_cast<uint16_t>(words.size() - before - kLaneHead);
    symbols += length;
  }
  return words;
}

bool holds_lanes(const uint16_t* words, size_t size, size_t count) {
  const size_t lanes = count == 0 ? 0 : (count - 1) / kLane + 1;
  if (lanes == 0 || size / (1 + kLaneHead) < lanes) return false;
  size_t all = (1 + kLaneHead) * lanes;
  for (size_t lane = 0; lane < lanes; ++lane) all += words[lane];
  return all == size;
}

bool decode_lanes(const uint16_t* words, const uint16_t* frequencies, uint8_t* symbols, size_t count) {
  const Slots slots(frequencies);
  const size_t lanes = lanes_of(count);
  const uint16_t* at = words + lanes;
  bool whole = true;
  for (size_t lane = 0; lane < lanes;) {
    Reader readers[kTogether];
    const size_t length = lane_length(count, lane);
    int together = 0;
    for (; together < kTogether && lane + together < lanes && lane_length(count, lane + together) == length; ++together) {
      Reader& r = readers[together];
      for (size_t digit = 0; digit < kLaneHead; ++digit) r.state |= uint64_t{at[digit]} << (kWord * digit);
      r.next = at + kLaneHead;
      r.end = at = r.next + words[lane + together];
    }
    if (together == kTogether) {
      decode_together<kTogether>(readers, length, slots, symbols);
    } else {
      for (int i = 0; i < together; ++i) decode_together<1>(readers + i, length, slots, symbols + i * length);
    }
    symbols += together * length;
    for (int i = 0; i < together; ++i) whole &= readers[i].state == 0 && readers[i].next == readers[i].end;
    lane += together;
  }
  return whole;
}

}  // namespace trimtab
