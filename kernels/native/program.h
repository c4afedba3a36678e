// A compiled network: tensors in one arena and the steps between them.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "checked.h"
#include "chain.h"
#include "conv.h"
#include "thread_pool.h"
#include "table.h"

namespace trimtab {

struct Tensor {
  int32_t c, h, w;
  size_t offset;    // in the arena, for the whole batch
  Operand operand;  // data is null until the arena exists
  size_t elements() const { return static_cast<size_t>(c) * h * w; }
};

// Bounds, then a curve.
struct Activation {
  float floor, ceil;
  Curve curve = Curve::kNone;
};

struct Slice {
  long runs;
  double seconds;
  long involuntary_switches;
};

// The caller (trimtab.kernels.validate) has checked every shape; tensors are named by their index.
class Program {
 public:
  Program(const Kernels& kernels, int threads, int batch);

  int add_tensor(int c, int h, int w, size_t offset, bool is_u8, float scale, int zero, int bits);
  // The layers that are added from here on run by this method where they can.
  void want(Method method) { wanted_ = method; }
  std::optional<Method> wanted() const { return wanted_; }
  void add_conv(const std::string& name, int in, int out, int residual, const ConvSpec& spec, Activation activation);
  // Makes one step, named as the last, of the last `count`: convolutions of which each reads just the one before.
  void chain(int count, size_t window_bytes);
  void add_sum(const std::string& name, int a, int b, int out, Activation activation);
  // `gates`: b is (C, 1, 1), one factor per channel of a.
  void add_mul(const std::string& name, int a, int b, int out, bool gates);
  void add_prelu(const std::string& name, int in, int out, const float* slope);
  void add_channel_affine(const std::string& name, int in, int out, const float* weight, const float* bias);
  void add_layer_norm(const std::string& name, int in, int out, const float* weight, const float* bias, float epsilon);
  void add_group_norm(const std::string& name, int in, int out, const float* weight, const float* bias, int groups,
                      float epsilon);
  void add_attention(const std::string& name, int q, int k, int v, int out, int heads, float scale);
  // constants (H of out, C): what is added to every token; the first tokens are nothing else.
  void add_tokens(const std::string& name, int in, int out, const float* constants);
  void add_convert(const std::string& name, int in, int out, Activation activation);
  void add_concat(const std::string& name, const std::vector<int>& in, int out);
  void add_max_pool(const std::string& name, int in, int out, const PoolArgs& args);
  void add_avg_pool(const std::string& name, int in, int out, const PoolArgs& args);
  void add_flatten(const std::string& name, int in, int out);
  void add_channel_map(const std::string& name, int in, int out, const std::vector<int32_t>& index);
  void add_subsample(const std::string& name, int in, int out, int stride_h, int stride_w);
  void add_nearest(const std::string& name, int in, int out);
  void add_bilinear(const std::string& name, int in, int out, bool align_corners);
  // The block, and the first row and column that are kept, (h, w) each.
  void add_depth_to_space(const std::string& name, int in, int out, int block_h, int block_w, int top, int left);
  void finish(int input, int output, size_t arena_bytes);

  const Tensor& input() const { return tensors_[input_]; }
  const Tensor& output() const { return tensors_[output_]; }
  const Tensor& tensor(int i) const { return tensors_[i]; }
  int batch() const { return batch_; }
  int threads() const { return threads_.size(); }
  size_t arena_bytes() const { return arena_.bytes() + scratch_bytes(); }
  size_t scratch_bytes() const { return scratch_per_thread_ * threads_.size() + shared_bytes_; }  // of all threads
  size_t weight_bytes() const { return weight_bytes_; }
  const std::string& level() const { return level_; }
  const std::vector<std::pair<std::string, std::string>>& layer_kernels() const { return layer_kernels_; }

  // x: (images, C, H, W); y: (images, ...), both float32 and any number of images.
  void run(const float* x, size_t images, float* y);
  Slice time(const float* inputs, size_t count, double seconds);
  std::vector<std::pair<std::string, double>> profile(const float* inputs, size_t count, long runs);
  // Values of every step's output, in order, for up to `batch` images; visit(tensor, values in NCHW).
  void trace(const float* x, int images, const std::function<void(int, const float*)>& visit);

 private:
  struct Step {
    std::string name;
    int output;
    std::function<void(const Task&)> run;
    std::shared_ptr<const ConvCall> conv;  // null where it is no convolution
    int conv_input;
    std::function<Store()> conv_store;
  };

  template <class Body>
  void add_step(const std::string& name, int output, Body body);
  Operand operand(int i) const;
  Store store(int out, int residual, Activation activation) const;
  void load_input(const float* x, const Task& task) const;
  void save_output(int tensor, float* y, const Task& task) const;
  Task task(int images, int thread) const;
  void run_step(const Step& step, const Task& task);
  void run_chunk(const float* x, int images, float* y);

  const Kernels& kernels_;
  std::optional<Method> wanted_;
  const int batch_;
  const std::string level_;
  std::vector<Tensor> tensors_;
  std::vector<Step> steps_;
  std::vector<std::pair<std::string, std::string>> layer_kernels_;
  int input_ = 0, output_ = 0;
  size_t weight_bytes_ = 0, scratch_per_thread_ = kLine, shared_bytes_ = 0;
  Memory arena_;
  Memory shared_;                // scratch that all threads of a step read and write
  std::vector<Memory> scratch_;  // of each thread
  WriteCheck check_;
  std::mutex mutex_;  // one run at a time: the arena is shared
  ThreadPool threads_;
};

}  // namespace trimtab
