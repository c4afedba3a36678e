// What the kernels of one instruction-set level offer, as a table of functions over plain structures.
// Every level is compiled in its own translation unit with its own flags, so nothing here may have a body.
#pragma once

#include <cstddef>
#include <cstdint>

namespace trimtab {

constexpr int kSlack = 256;  // bytes that a kernel may read past the end of a tensor or of its scratch

constexpr int kQueries = 6;  // rows of one product of attention: with two vectors each their sums fit the registers

// A stored tensor: float32, or uint8 with real = (q - zero) * scale and q <= top.
struct Operand {
  void* data;
  float scale;
  float inverse;  // float32(1 / scale)
  int32_t zero;
  int32_t top;  // 2^bits - 1
  bool is_u8;
};

// An activation beyond bounds; bounds come first.
enum class Curve : int32_t { kNone, kHardSigmoid, kHardSwish, kSigmoid, kSilu, kGelu, kTanh, kElu };

// What happens between an accumulator and memory.
struct Store {
  Operand out;
  Operand residual;
  bool has_residual;
  bool requantize;     // integers straight to integers: q = round(clamp(acc * scale[c], low, high)) + zero
  float low, high;     // clamp before rounding, relative to the zero point
  bool saturates;      // of integers, or their sum with a residual, to uint8: packing with saturation gives these bounds
  float floor, ceil;   // the activation's bounds on real values
  Curve curve;         // its curve
  const float* scale;  // per channel, padded to whole vectors: acc -> real, or acc -> q where requantize
};

// Rows of a tile, and steps of one that is whole; vectors of channels in a panel of kTiles.
constexpr int kTileRows = 16, kTileSteps = 16, kTileVectors = 2;

// The kernel that a convolution runs on.
constexpr size_t kFarWeights = 256 * 1024;  // bytes of a layer's weights that have left the cache since the last run

constexpr int kShortColumns = 2;  // of a depthwise filter, whose sums by two rows fit 16 bits in kShort

// kMethods (conv.h) has their names.
enum class Method : uint8_t {
  kRows,      // a matrix product whose left rows are filter rows, read in place; of a depthwise layer, depthwise.h
  kNarrow,    // the same, with weights that are widened as they are read: int8, or bf16 in a float layer
  kShort,     // the same, with sums in 16 bits of operands that are small enough
  kTiles,     // the same, on AMX tiles: of integers, or of bf16 numbers in a float layer
  kPairs,     // the same, of bf16 numbers in pairs
  kRounded,   // the same in float32, of inputs that are rounded to bf16 as they are copied
  kWinograd,  // Winograd's algorithm for 3x3 filters, two by two outputs at a time (winograd.h)
  kWinograd4, // the same, four by four
  kSparse,    // as kRows, by a list of blocks of weights, those that are all zero left out (sparse.h)
  kPacked,    // weights of few distinct values as 2- or 4-bit codes, looked up as they are read (packed.h)
  kLookup,    // weights of two distinct values select from tables of the inputs' sums (lookup.h)
};

// How weights of few distinct values are stored, and how far their sums can go before they are widened.
struct Codes {
  int32_t bits;          // of a weight
  int32_t factor, base;  // what the kernel sums up becomes base * (sum of inputs) + factor * sum
  int32_t depth;         // kPacked: chunks whose sums fit 16 bits. kLookup: pairs of steps whose sums fit 8 bits
  int32_t inputs;        // kPacked: of one output, padded to whole chunks
  int32_t terms;         // kPacked: weight = factor * table[0], or factor * (16 table[0] + table[1])
  int8_t table[2][2][16];  // kPacked: [term][code of the nibble][nibble]
  int32_t digits;        // kLookup: of an input, each up to 4 bits
  int32_t quads;         // kLookup: of a position and group, four inputs each
  int32_t spill;         // kLookup: pairs of steps whose sums fit 16 bits
  int32_t positions;     // kLookup: of input in a block
  size_t scratch_bytes;  // at the beginning of each thread's scratch
};

// The blocks of one panel that are not all zero.
struct SparsePanel {
  const int32_t* blocks;  // where their inputs lie, in elements from the pixel's first input
  int32_t count;
  size_t first_weight;  // in elements
};

// A convolution (a linear layer is one of 1x1 pixel). Packed weights: [group][panel][step][vector][lane][dot];
// a step is `dot` consecutive inputs; a filter row is a segment of whole steps. A depthwise one:
// [phase][vector][segment][step][lane][dot], where a segment is a group of `dot` rows and a step a column of the filter.
struct Conv {
  int32_t ih, iw, ic, oh, ow, oc;
  int32_t stride_h, stride_w, pad_top, pad_left;
  int32_t dilation_h, dilation_w;
  int32_t reach_h, reach_w;  // (kernel - 1) * dilation + 1
  int32_t groups;
  bool pointwise;      // 1x1, stride 1, no padding: all pixels of the batch are one column of rows
  bool direct;         // the kernel reads the stored input itself: no copy
  Method method;
  int32_t block_rows;  // output rows that share one scratch
  int32_t scratch_w;   // pixels in a scratch row
  int32_t segments;    // contiguous runs of the filter, or groups of its rows (depthwise)
  const int32_t* segment_offset;  // in elements, from the pixel's first input
  int32_t segment_length;         // in elements, before padding to whole steps
  int32_t steps;                  // per segment
  int32_t depth;                  // kShort: steps whose sums fit 16 bits; not of depthwise layers
  const void* weights;
  const void* start;   // per output channel, padded: the accumulators' first value (int32 or float)
  size_t group_bytes;  // of packed weights, of one group or one phase
  int32_t group_width; // padded output channels of one group
  int32_t tile_side;       // Winograd: outputs of a tile along one side; 0 of other methods
  int32_t tiles;           // Winograd: tiles that pass through all panels together
  int32_t tile_channels;   // Winograd: elements of a transformed tile in one plane
  int32_t inputs_plane, products_plane;  // Winograd: elements between planes
  const SparsePanel* sparse;             // kSparse: of every group's panels
  int32_t gathered;        // kTiles: so many pieces of every pixel's inputs are copied side by side, as one segment; 0: none
  size_t gathered_bytes;   // at the beginning of each thread's scratch
  bool half_panel;                       // every group ends in a panel of one vector of half as many lanes; of a
                                         // depthwise layer all vectors are such
  Codes codes;                           // kPacked, kLookup
};

// One thread's share of one step on `images` images, or of some output rows of each.
struct Task {
  int32_t images;
  int32_t thread, threads;
  char* scratch;
  int32_t first_row = 0, last_row = INT32_MAX;
};

struct PoolArgs {
  int32_t ih, iw, c, oh, ow;
  int32_t kh, kw, stride_h, stride_w, pad_top, pad_left;
  bool include_pad;
  bool adaptive;  // window i of n over a side of length l: [floor(i l / n), ceil((i + 1) l / n))
};

// Normalises the c channels of every pixel.
struct NormArgs {
  int32_t c;
  float epsilon;
  const float *weight, *bias;  // per channel
};

// Pixels of an image whose moments are taken together, so that float32 sums stay short.
constexpr int kMomentPixels = 256;

// Normalises groups of channels over all pixels of an image.
struct GroupNormArgs {
  int32_t c, groups, pixels;
  int32_t blocks;  // of kMomentPixels, the last perhaps of fewer
  float epsilon;
  const float *weight, *bias;  // per channel
  float* moments;              // [image][block][pivot, sum of what is apart from it, its squares][channel]
};

// Between which two inputs of a side an output lies, and how much of the second it is.
struct Tap {
  int32_t first, second;
  float share;
};

struct BilinearArgs {
  int32_t ih, iw, c, oh, ow;
  const Tap *rows, *columns;  // of every row and column of the output
};

// Output (y, x) is what lies in the block's place ((y + top) % block_h, (x + left) % block_w).
struct DepthToSpaceArgs {
  int32_t ih, iw, c, oh, ow;  // c of the output
  int32_t block_h, block_w, top, left;
};

constexpr int kPicked = 16;  // bytes of a pixel that are picked at a time
constexpr uint8_t kNowhere = 0x80;

// What kPicked bytes of an output pixel, from `target` on, take of those of the input pixel from `source` on: byte i is
// number place[i], or none of them where that is kNowhere.
struct Pick {
  int32_t target, source;
  uint8_t place[kPicked];
};

struct PickArgs {
  int32_t in_bytes, out_bytes;  // of a pixel
  const uint8_t* start;         // of an output pixel, up to a multiple of kPicked: what is not picked, else zeros
  const Pick* picks;            // in the order of their targets, and one more, behind every target
};

// Softmax(scale q k^T) v of every head; a token is a pixel whose channels are its heads' features side by side.
struct AttentionArgs {
  int32_t tokens, heads;
  int32_t depth, width;  // features of one head: of q and k, and of v
  float scale;
};

// The numbers that a quantised tensor can hold: whole multiples, low to high, of a step.
struct Steps {
  float step, low, high;
};

struct Kernels {
  const char* name;
  int32_t lanes;        // of a 32-bit vector
  int32_t half_lanes;   // of half panels; 0: there are none
  int32_t rows;         // highest tile, in pixels
  int32_t vectors;      // widest panel, in vectors
  int32_t dot;          // inputs of one integer dot product
  bool has_short;
  bool has_winograd;    // for integers; float has it everywhere
  bool wide_inputs;     // the integer GEMM reads (q - zero) as int16; else q as uint8
  bool has_tiles;
  bool has_narrow;      // int8 weights can be widened as they are read
  bool has_lookup;      // kPacked and kLookup
  bool has_bf16;        // kPairs, and kTiles in a float layer
  void (*conv_int)(const Conv&, const Store&, const Operand& in, const Task&);
  void (*conv_float)(const Conv&, const Store&, const Operand& in, const Task&);
  void (*depthwise_int)(const Conv&, const Store&, const Operand& in, const Task&);
  void (*depthwise_float)(const Conv&, const Store&, const Operand& in, const Task&);
  // out[r * stride + i] = store(activation(in[r * width + i]))
  void (*convert)(const Operand& in, const Store&, size_t rows, size_t width, size_t stride);
  void (*add)(const Operand& a, const Operand& b, const Store&, size_t first, size_t last);
  // Pixels [first, last) of a, c channels each, times the same pixel of b, or, where `gate`, pixel / gate of b.
  void (*mul)(const Operand& a, const Operand& b, const Store&, size_t first, size_t last, size_t c, size_t gate);
  // Pixels [first, last), c channels each.
  void (*prelu)(const Operand& in, const Store&, const float* slope, size_t first, size_t last, size_t c);
  void (*channel_affine)(const Operand& in, const Store&, const float* weight, const float* bias, size_t first,
                         size_t last, size_t c);
  void (*layer_norm)(const NormArgs&, const Operand& in, const Store&, size_t first, size_t last);
  void (*moments)(const GroupNormArgs&, const Operand& in, size_t first, size_t last);  // of these blocks of pixels
  void (*group_norm)(const GroupNormArgs&, const Operand& in, const Store&, size_t first, size_t last, char* scratch);
  void (*attention)(const AttentionArgs&, const Operand& q, const Operand& k, const Operand& v, const Store&,
                    const Task&);
  void (*max_pool)(const PoolArgs&, const Operand& in, const Operand& out, size_t first, size_t last);
  void (*avg_pool)(const PoolArgs&, const Operand& in, const Store&, size_t first, size_t last);
  // Rows [first, last) of the output, in all images.
  void (*bilinear)(const BilinearArgs&, const Operand& in, const Store&, size_t first, size_t last, char* scratch);
  // What rows [first, last) of the input become, in all images.
  void (*depth_to_space)(const DepthToSpaceArgs&, const Operand& in, const Operand& out, size_t first, size_t last);
  // Pixels [first, last), none of which the input and the output share.
  void (*pick_channels)(const PickArgs&, const uint8_t* in, uint8_t* out, size_t first, size_t last);
  void (*input)(const float* nchw, const Store&, int32_t channels, int32_t pixels, int32_t begin, int32_t end);
  void (*round_to_steps)(const Steps&, const float* x, float* y, size_t count);
  // Fills dx and returns the gradient of the step.
  double (*round_to_steps_back)(const Steps&, const float* x, const float* dy, float* dx, size_t count);
  double (*peak_int)(double seconds);    // MAC/s of the dot product in registers
  double (*peak_float)(double seconds);  // MAC/s of multiply-add in registers
  double (*stream)(const void* data, size_t bytes, double seconds);  // bytes/s read
};

const Kernels& portable_kernels();
const Kernels& emulated_avx_vnni_kernels();
const Kernels& emulated_avx512_kernels();
const Kernels& emulated_amx_kernels();
#if defined(__x86_64__)
const Kernels& avx2_kernels();
const Kernels& avx_vnni_kernels();
const Kernels& avx512_kernels(bool bf16);  // whether the processor multiplies bf16 numbers
const Kernels& amx_kernels(bool bf16);
#endif

}  // namespace trimtab
