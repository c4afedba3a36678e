// The Python module trimtab.kernels._native. Its callers have checked shapes and values; see _native.pyi.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <limits>
#include <optional>

#include "compensated.h"
#include "cpu.h"
#include "entropy.h"
#include "observe.h"
#include "padding.h"
#include "program.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace trimtab {
namespace {

using Floats = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<const int8_t, nb::c_contig, nb::device::cpu>;
using NewFloats = nb::ndarray<nb::numpy, float>;
using Ints = std::vector<int32_t>;

Activation activation_of(const std::string& name) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  if (name == "relu") return {0.0f, kInfinity};
  if (name == "relu6") return {0.0f, 6.0f};
  constexpr std::pair<const char*, Curve> kCurves[] = {{"hard_sigmoid", Curve::kHardSigmoid},
                                                       {"hard_swish", Curve::kHardSwish},
                                                       {"sigmoid", Curve::kSigmoid},
                                                       {"silu", Curve::kSilu},
                                                       {"gelu", Curve::kGelu},
                                                       {"tanh", Curve::kTanh},
                                                       {"elu", Curve::kElu}};
  for (const auto& [known, curve] : kCurves) {
    if (name == known) return {-kInfinity, kInfinity, curve};
  }
  return {-kInfinity, kInfinity};
}

const Kernels& kernels_of(const std::string& level) {
  const Kernels* kernels = find_kernels(level);
  if (kernels == nullptr) throw nb::value_error("this machine lacks the kernel level");
  return *kernels;
}

void check_input(const Program& p, const Floats& x, size_t leading) {
  if (x.ndim() < leading) throw nb::value_error("input has too few dimensions");
  size_t elements = 1;
  for (size_t i = leading; i < x.ndim(); ++i) elements *= x.shape(i);
  if (elements != p.input().elements()) throw nb::value_error("input has the wrong shape");
}

NewFloats new_floats(const Tensor& t, size_t images, bool flat) {
  std::vector<size_t> shape{images, static_cast<size_t>(t.c)};
  if (!flat) shape.insert(shape.end(), {static_cast<size_t>(t.h), static_cast<size_t>(t.w)});
  auto* data = new float[t.elements() * images];
  nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<float*>(p); });
  return NewFloats(data, shape.size(), shape.data(), owner);
}

NewFloats run(Program& p, const Floats& x, bool flat) {
  check_input(p, x, 1);
  const size_t images = x.shape(0);
  NewFloats y = new_floats(p.output(), images, flat);
  {
    float* const out = y.data();
    const float* const in = x.data();
    nb::gil_scoped_release unlocked;
    p.run(in, images, out);
  }
  return y;
}

std::vector<std::pair<int, NewFloats>> trace(Program& p, const Floats& x) {
  check_input(p, x, 1);
  if (x.shape(0) > static_cast<size_t>(p.batch())) throw nb::value_error("more images than the batch");
  const size_t images = x.shape(0);
  std::vector<std::pair<int, NewFloats>> values;
  p.trace(x.data(), static_cast<int>(images), [&](int tensor, const float* data) {
    NewFloats copy = new_floats(p.tensor(tensor), images, false);
    std::memcpy(copy.data(), data, p.tensor(tensor).elements() * images * sizeof(float));
    values.emplace_back(tensor, copy);
  });
  return values;
}

nb::tuple time_runs(Program& p, const Floats& inputs, double seconds) {
  check_input(p, inputs, 2);
  Slice slice;
  {
    nb::gil_scoped_release unlocked;
    slice = p.time(inputs.data(), inputs.shape(0), seconds);
  }
  return nb::make_tuple(slice.runs, slice.seconds, slice.involuntary_switches);
}

std::vector<std::pair<std::string, double>> profile(Program& p, const Floats& inputs, long runs) {
  check_input(p, inputs, 2);
  nb::gil_scoped_release unlocked;
  return p.profile(inputs.data(), inputs.shape(0), runs);
}

// geometry: kernel, stride, dilation (h, w each), padding (top, left, bottom, right), groups.
ConvSpec spec_of(const Program& p, int in, int out, const Ints& geometry) {
  const Tensor &from = p.tensor(in), &to = p.tensor(out);
  const auto at = [&](size_t i) { return geometry.at(i); };
  ConvSpec s{};
  s.ic = from.c, s.ih = from.h, s.iw = from.w, s.oc = to.c, s.oh = to.h, s.ow = to.w;
  s.kh = at(0), s.kw = at(1), s.stride_h = at(2), s.stride_w = at(3), s.dilation_h = at(4), s.dilation_w = at(5);
  s.pad_top = at(6), s.pad_left = at(7), s.groups = at(10);
  s.pads = (at(6) | at(7) | at(8) | at(9)) != 0;
  s.wanted = p.wanted();
  return s;
}

template <bool Bf16>
void add_conv_float(Program& p, const std::string& name, int in, int out, int residual, const Ints& geometry,
                    const Floats& weights, const Floats& bias, const std::string& activation) {
  ConvSpec s = spec_of(p, in, out, geometry);
  s.bf16 = Bf16;
  s.float_weights = weights.data();
  s.bias = bias.data();
  p.add_conv(name, in, out, residual, s, activation_of(activation));
}

void add_conv_int(Program& p, const std::string& name, int in, int out, int residual, const Ints& geometry,
                  const Bytes& weights, const Floats& weight_scale, const Floats& bias,
                  const std::string& activation) {
  ConvSpec s = spec_of(p, in, out, geometry);
  s.int_weights = weights.data();
  s.weight_scale = weight_scale.data();
  s.bias = bias.data();
  p.add_conv(name, in, out, residual, s, activation_of(activation));
}

// geometry: kernel, stride (h, w each), padding (top, left); `kind` is "max", "average" or "adaptive".
void add_pool(Program& p, const std::string& name, int in, int out, const Ints& geometry, const std::string& kind,
              bool include_pad) {
  const Tensor &from = p.tensor(in), &to = p.tensor(out);
  const auto at = [&](size_t i) { return geometry.at(i); };
  const PoolArgs args{from.h, from.w, from.c, to.h,  to.w,  at(0),
                      at(1),  at(2),  at(3),  at(4), at(5), include_pad, kind == "adaptive"};
  if (kind == "max")
    p.add_max_pool(name, in, out, args);
  else
    p.add_avg_pool(name, in, out, args);
}

void add_prelu(Program& p, const std::string& name, int in, int out, const Floats& slope) {
  p.add_prelu(name, in, out, slope.data());
}

void add_channel_affine(Program& p, const std::string& name, int in, int out, const Floats& weight,
                        const Floats& bias) {
  p.add_channel_affine(name, in, out, weight.data(), bias.data());
}

void add_group_norm(Program& p, const std::string& name, int in, int out, const Floats& weight, const Floats& bias,
                    int groups, float epsilon) {
  p.add_group_norm(name, in, out, weight.data(), bias.data(), groups, epsilon);
}

void add_layer_norm(Program& p, const std::string& name, int in, int out, const Floats& weight, const Floats& bias,
                    float epsilon) {
  p.add_layer_norm(name, in, out, weight.data(), bias.data(), epsilon);
}

void add_tokens(Program& p, const std::string& name, int in, int out, const Floats& constants) {
  p.add_tokens(name, in, out, constants.data());
}

nb::dict cpu_dict() {
  const Cpu cpu = detect_cpu();
  nb::dict d;
  d["vendor"] = cpu.vendor;
  d["model"] = cpu.model;
  d["features"] = cpu.features;
  d["logical_cpus"] = cpu.logical;
  return d;
}

double stream_rate(const std::string& level, size_t bytes, double seconds) {
  const Memory buffer(bytes);
  nb::gil_scoped_release unlocked;
  return kernels_of(level).stream(buffer.data(), bytes, seconds);
}

using Values = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Target = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void round_to_steps(const std::string& level, const Values& x, const Target& y, float step, float low, float high) {
  const Kernels& kernels = kernels_of(level);
  nb::gil_scoped_release unlocked;
  kernels.round_to_steps({step, low, high}, x.data(), y.data(), x.size());
}

double round_to_steps_back(const std::string& level, const Values& x, const Values& dy, const Target& dx, float step,
                           float low, float high) {
  const Kernels& kernels = kernels_of(level);
  nb::gil_scoped_release unlocked;
  return kernels.round_to_steps_back({step, low, high}, x.data(), dy.data(), dx.data(), x.size());
}

using Matrix = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using NewMatrix = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using LevelValues = nb::ndarray<const int8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void round_in_order_of(const Matrix& rows, const Values& scale, const LevelValues& levels, const Matrix& factor,
                       const NewMatrix& rounded) {
  nb::gil_scoped_release unlocked;
  round_in_order({rows.data(), scale.data(), rows.shape(0), rows.shape(1)}, {levels.data(), levels.size()},
                 factor.data(), rounded.data());
}

void descend_from(const Matrix& rows, const Values& scale, const LevelValues& levels, const Matrix& gram, int sweeps,
                  const NewMatrix& rounded, const NewMatrix& missing) {
  nb::gil_scoped_release unlocked;
  descend({rows.data(), scale.data(), rows.shape(0), rows.shape(1)}, {levels.data(), levels.size()}, gram.data(),
          sweeps, rounded.data(), missing.data());
}

using Pixels = nb::ndarray<const float, nb::ndim<4>, nb::c_contig, nb::device::cpu>;
using Indices = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// geometry: kernel, stride, dilation (h, w each), padding (top, left).
void read_fields(const Pixels& images, const Indices& image, const Indices& row, const Indices& column,
                 const Ints& geometry, const NewMatrix& fields) {
  const auto at = [&](size_t i) { return geometry.at(i); };
  const Window window{images.shape(1), images.shape(2), images.shape(3), at(0), at(1), at(2), at(3),
                      at(4),           at(5),           at(6),           at(7)};
  nb::gil_scoped_release unlocked;
  for (size_t i = 0; i < image.size(); ++i) {
    const Position position{image.data()[i], row.data()[i], column.data()[i]};
    read_field(window, images.data(), position, fields.data() + i * fields.shape(1));
  }
}

std::pair<float, float> extremes(const Values& values) {
  nb::gil_scoped_release unlocked;
  const Extremes found = extremes_of(values.data(), values.size());
  return {found.low, found.high};
}

double storage_error_of(const Values& values, float step, float low, float high) {
  nb::gil_scoped_release unlocked;
  return storage_error(values.data(), values.size(), step, low, high);
}

using Symbols = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Words = nb::ndarray<const uint16_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Frequencies = nb::ndarray<const uint16_t, nb::shape<256>, nb::c_contig, nb::device::cpu>;

template <class T>
nb::ndarray<nb::numpy, T> new_vector(size_t size) {
  auto* data = new T[size];
  return {data, {size}, nb::capsule(data, [](void* p) noexcept { delete[] static_cast<T*>(p); })};
}

nb::ndarray<nb::numpy, uint16_t> encode(const Symbols& symbols, const Frequencies& frequencies) {
  const std::vector<uint16_t> words = encode_lanes(symbols.data(), symbols.shape(0), frequencies.data());
  auto found = new_vector<uint16_t>(words.size());
  std::copy(words.begin(), words.end(), found.data());
  return found;
}

std::optional<nb::ndarray<nb::numpy, uint8_t>> decode(const Words& words, const Frequencies& frequencies,
                                                      size_t count) {
  if (!holds_lanes(words.data(), words.shape(0), count)) return std::nullopt;
  auto symbols = new_vector<uint8_t>(count);
  if (!decode_lanes(words.data(), frequencies.data(), symbols.data(), count)) return std::nullopt;
  return symbols;
}

}  // namespace
}  // namespace trimtab

NB_MODULE(_native, m) {
  using namespace trimtab;
  m.def("levels", &available_levels);
  m.def("emulated_levels", &emulated_levels);
  m.def("cpu", &cpu_dict);
  m.def("has_bf16", [](const std::string& level) { return kernels_of(level).has_bf16; }, "level"_a);
  m.def("stored_channels",
        [](const std::string& level, int count, bool integer, bool depthwise, const std::vector<int>& filters) {
          return stored_channels(kernels_of(level), {count, integer, depthwise, filters});
        },
        "level"_a, "count"_a, "integer"_a, "depthwise"_a, "filters"_a);
  m.def("peak_int", [](const std::string& level, double s) { return kernels_of(level).peak_int(s); }, "level"_a,
        "seconds"_a, nb::call_guard<nb::gil_scoped_release>());
  m.def("peak_float", [](const std::string& level, double s) { return kernels_of(level).peak_float(s); }, "level"_a,
        "seconds"_a, nb::call_guard<nb::gil_scoped_release>());
  m.attr("BUILD") = TRIMTAB_BUILD;
  nb::list methods;
  for (const char* method : kMethods) methods.append(method);
  m.attr("METHODS") = nb::tuple(methods);
  m.attr("LANE") = kLane;
  m.attr("PRECISION") = kPrecision;
  m.def("encode", &encode, "symbols"_a.noconvert(), "frequencies"_a.noconvert());
  m.def("decode", &decode, "words"_a.noconvert(), "frequencies"_a.noconvert(), "count"_a);
  m.def("round_to_steps", &round_to_steps, "level"_a, "x"_a.noconvert(), "y"_a.noconvert(), "step"_a, "low"_a,
        "high"_a);
  m.def("round_to_steps_back", &round_to_steps_back, "level"_a, "x"_a.noconvert(), "dy"_a.noconvert(),
        "dx"_a.noconvert(), "step"_a, "low"_a, "high"_a);
  m.def("round_in_order", &round_in_order_of, "rows"_a.noconvert(), "scale"_a.noconvert(), "levels"_a.noconvert(),
        "factor"_a.noconvert(), "rounded"_a.noconvert());
  m.def("descend", &descend_from, "rows"_a.noconvert(), "scale"_a.noconvert(), "levels"_a.noconvert(),
        "gram"_a.noconvert(), "sweeps"_a, "rounded"_a.noconvert(), "missing"_a.noconvert());
  m.def("read_fields", &read_fields, "images"_a.noconvert(), "image"_a.noconvert(), "row"_a.noconvert(),
        "column"_a.noconvert(), "geometry"_a, "fields"_a.noconvert());
  m.def("extremes", &extremes, "values"_a.noconvert());
  m.def("storage_error", &storage_error_of, "values"_a.noconvert(), "step"_a, "low"_a, "high"_a);
  m.def("stream_rate", &stream_rate, "level"_a, "size"_a, "seconds"_a);
  nb::class_<Program>(m, "Program")
      .def("__init__", [](Program* p, const std::string& level, int threads,
                          int batch) { new (p) Program(kernels_of(level), threads, batch); },
           "level"_a, "threads"_a, "batch"_a)
      .def("want", [](Program& p, int method) { p.want(static_cast<Method>(method)); }, "method"_a)
      .def("add_tensor", &Program::add_tensor, "c"_a, "h"_a, "w"_a, "offset"_a, "is_u8"_a, "scale"_a, "zero"_a,
           "bits"_a)
      .def("add_conv_float", &add_conv_float<false>, "name"_a, "source"_a, "target"_a, "residual"_a, "geometry"_a,
           "weights"_a.noconvert(), "bias"_a.noconvert(), "activation"_a)
      .def("add_conv_bf16", &add_conv_float<true>, "name"_a, "source"_a, "target"_a, "residual"_a, "geometry"_a,
           "weights"_a.noconvert(), "bias"_a.noconvert(), "activation"_a)
      .def("add_conv_int", &add_conv_int, "name"_a, "source"_a, "target"_a, "residual"_a, "geometry"_a,
           "weights"_a.noconvert(), "weight_scale"_a.noconvert(), "bias"_a.noconvert(), "activation"_a)
      .def("chain", &Program::chain, "count"_a, "window_bytes"_a)
      .def("add_sum", [](Program& p, const std::string& name, int a, int b, int out,
                         const std::string& activation) { p.add_sum(name, a, b, out, activation_of(activation)); },
           "name"_a, "a"_a, "b"_a, "target"_a, "activation"_a)
      .def("add_mul", &Program::add_mul, "name"_a, "a"_a, "b"_a, "target"_a, "gates"_a)
      .def("add_prelu", &add_prelu, "name"_a, "source"_a, "target"_a, "slope"_a.noconvert())
      .def("add_channel_affine", &add_channel_affine, "name"_a, "source"_a, "target"_a, "weight"_a.noconvert(),
           "bias"_a.noconvert())
      .def("add_layer_norm", &add_layer_norm, "name"_a, "source"_a, "target"_a, "weight"_a.noconvert(),
           "bias"_a.noconvert(), "epsilon"_a)
      .def("add_group_norm", &add_group_norm, "name"_a, "source"_a, "target"_a, "weight"_a.noconvert(),
           "bias"_a.noconvert(), "groups"_a, "epsilon"_a)
      .def("add_attention", &Program::add_attention, "name"_a, "query"_a, "key"_a, "value"_a, "target"_a, "heads"_a,
           "scale"_a)
      .def("add_tokens", &add_tokens, "name"_a, "source"_a, "target"_a, "constants"_a.noconvert())
      .def("add_convert", [](Program& p, const std::string& name, int in, int out,
                             const std::string& activation) { p.add_convert(name, in, out, activation_of(activation)); },
           "name"_a, "source"_a, "target"_a, "activation"_a)
      .def("add_concat", &Program::add_concat, "name"_a, "inputs"_a, "target"_a)
      .def("add_pool", &add_pool, "name"_a, "source"_a, "target"_a, "geometry"_a, "kind"_a, "include_pad"_a)
      .def("add_flatten", &Program::add_flatten, "name"_a, "source"_a, "target"_a)
      .def("add_channel_map", &Program::add_channel_map, "name"_a, "source"_a, "target"_a, "index"_a)
      .def("add_subsample", &Program::add_subsample, "name"_a, "source"_a, "target"_a, "stride_h"_a, "stride_w"_a)
      .def("add_nearest", &Program::add_nearest, "name"_a, "source"_a, "target"_a)
      .def("add_bilinear", &Program::add_bilinear, "name"_a, "source"_a, "target"_a, "align_corners"_a)
      .def("add_depth_to_space", &Program::add_depth_to_space, "name"_a, "source"_a, "target"_a, "block_h"_a,
           "block_w"_a, "top"_a, "left"_a)
      .def("finish", &Program::finish, "source"_a, "target"_a, "arena_bytes"_a)
      .def("run", &run, "x"_a.noconvert(), "flat"_a)
      .def("trace", &trace, "x"_a.noconvert())
      .def("time", &time_runs, "inputs"_a.noconvert(), "seconds"_a)
      .def("profile", &profile, "inputs"_a.noconvert(), "runs"_a)
      .def_prop_ro("arena_bytes", &Program::arena_bytes)
      .def_prop_ro("scratch_bytes", &Program::scratch_bytes)
      .def_prop_ro("weight_bytes", &Program::weight_bytes)
      .def_prop_ro("layer_kernels", &Program::layer_kernels);
}
