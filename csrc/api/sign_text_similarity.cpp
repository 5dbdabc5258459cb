// slr_sign_text_similarity_cpu and its adjoint: argument checks, the rows that are there, blocks of them.
#include "common/sign_text_similarity.h"

#include <cmath>
#include <cstring>

#include "api/arguments.h"

namespace slr {
namespace {

struct Call {
  const char* op;
  int32_t dtype;
  const void* sign;
  const uint8_t* sign_mask;
  const void* text;
  const uint8_t* text_mask;
  int64_t b, sign_length, m, text_length, d;
  double row_temperature;
  bool backward;
  const void* grad;
  void *similarity, *slopes, *grad_sign, *grad_text;
  int32_t threads;
};

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// The rows of b sequences that are there: their numbers and sequences, and how many each has; returns their number.
int64_t present(const uint8_t* mask, int64_t b, int64_t length, int64_t* rows, int64_t* owners, int64_t* counts) {
  int64_t found = 0;
  for (int64_t i = 0; i < b; ++i) {
    const int64_t before = found;
    for (int64_t row = i * length; row < (i + 1) * length; ++row)
      if (mask == nullptr || mask[row] != 0) rows[found] = row, owners[found++] = i;
    counts[i] = found - before;
  }
  return found;
}

slr_status check(const Call& call) {
  const int64_t size = size_of(call.dtype), compute = compute_size(call.dtype);
  int64_t signs, words, sign_lanes, word_lanes, kept;
  if (call.dtype != SLR_F32 && call.dtype != SLR_F64 && call.dtype != SLR_BF16)
    return fail(SLR_INVALID_ARGUMENT, "%s: dtype must be SLR_F32, SLR_F64 or SLR_BF16, got %d", call.op, call.dtype);
  if (call.b < 0 || call.sign_length < 0 || call.m < 0 || call.text_length < 0 || call.d < 0 ||
      __builtin_mul_overflow(call.b, call.sign_length, &signs) ||
      __builtin_mul_overflow(call.m, call.text_length, &words) || signs > INT64_MAX / 64 || words > INT64_MAX / 64)
    return fail(SLR_INVALID_ARGUMENT, "%s: impossible sizes b=%lld sign_length=%lld m=%lld text_length=%lld d=%lld",
                call.op, (long long)call.b, (long long)call.sign_length, (long long)call.m, (long long)call.text_length,
                (long long)call.d);
  sign_lanes = rounded_up(signs, kWidest), word_lanes = rounded_up(words, kRowStep);
  if (call.slopes != nullptr && (__builtin_mul_overflow(sign_lanes, word_lanes, &kept) || kept > INT64_MAX / 64))
    return fail(SLR_INVALID_ARGUMENT, "%s: impossible size %lld x %lld of slopes", call.op, (long long)sign_lanes,
                (long long)word_lanes);
  if (const slr_status status =
          check_buffers(call.op, {{"sign", call.sign, signs, call.d, size},
                                  {"sign_mask", call.sign_mask, signs, 1, 1, true},
                                  {"text", call.text, words, call.d, size},
                                  {"text_mask", call.text_mask, words, 1, 1, true},
                                  {"slopes", call.slopes, 1, 1, compute, true},
                                  {call.backward ? "grad" : "similarity", call.backward ? call.grad : call.similarity,
                                   call.b, call.m, compute},
                                  {"grad_sign", call.grad_sign, signs, call.d, compute, true},
                                  {"grad_text", call.grad_text, words, call.d, compute, true}}))
    return status;
  return check_temperature(call.op, "row_temperature", call.row_temperature);
}

// Of a batch's rows: the whole blocks and groups, and the memory for one of each.
class Run {
 public:
  Run(const Call& call, Isa isa) : call_(call), isa_(isa) {}

  template <class T>
  slr_status run() {
    const int64_t signs = call_.b * call_.sign_length, words = call_.m * call_.text_length;
    const Memory lists(8 * (2 * signs + 2 * words + 2 * call_.b + 4 * call_.m + 1) + 1024 +
                       (call_.backward ? 0 : 8 * call_.b * call_.m));
    if (lists.data() == nullptr) return out_of_memory(call_.op);
    Parts parts(lists.data());
    sign_rows_ = parts.take<int64_t>(signs), clips_ = parts.take<int64_t>(signs);
    int64_t* const counts = parts.take<int64_t>(call_.b);
    text_rows_ = parts.take<int64_t>(words);
    int64_t* const owners = parts.take<int64_t>(words);
    int64_t* const lengths = parts.take<int64_t>(call_.m);
    bounds_ = parts.take<int64_t>(call_.m + 1), columns_ = parts.take<int64_t>(call_.m);
    shares_ = parts.take<double>(call_.b);
    rows_ = present(call_.sign_mask, call_.b, call_.sign_length, sign_rows_, clips_, counts);
    words_ = present(call_.text_mask, call_.m, call_.text_length, text_rows_, owners, lengths);
    for (int64_t i = 0; i < call_.b; ++i)
      static_cast<T*>(shares_)[i] = static_cast<T>(1.0 / static_cast<double>(larger(counts[i], 1)));
    texts_ = 0, longest_ = 1;
    for (int64_t j = 0; j < call_.m; ++j)
      if (lengths[j] > 0) columns_[texts_] = j, lengths[texts_++] = lengths[j], longest_ = larger(longest_, lengths[j]);
    lengths_ = lengths;
    totals_ = call_.backward ? nullptr : parts.take<double>(call_.b * call_.m);
    if (totals_ != nullptr) std::memset(totals_, 0, call_.b * call_.m * 8);
    clear<T>(call_.grad_sign, call_.sign_mask, signs, rows_ == 0 || words_ == 0);
    clear<T>(call_.grad_text, call_.text_mask, words, rows_ == 0 || words_ == 0);
    if (rows_ > 0 && words_ > 0)
      if (const slr_status status = blocks<T>()) return status;
    if (!call_.backward && call_.slopes != nullptr) {  // what no score belongs to
      const int64_t all = rounded_up(signs, kWidest) * rounded_up(words, kRowStep);
      const int64_t used =
          rows_ == 0 || words_ == 0 ? 0 : rounded_up(rows_, panel_of(isa_, call_.dtype)) * rounded_up(words_, kRowStep);
      std::memset(static_cast<T*>(call_.slopes) + used, 0, (all - used) * sizeof(T));
    }
    if (totals_ != nullptr)
      for (int64_t i = 0; i < call_.b; ++i)
        for (int64_t j = 0; j < call_.m; ++j)
          static_cast<T*>(call_.similarity)[i * call_.m + j] =
              static_cast<T>(totals_[i * call_.m + j] / static_cast<double>(larger(counts[i], 1)));
    return SLR_OK;
  }

 private:
  // Zeros for the rows that are not there.
  template <class T>
  void clear(void* grad, const uint8_t* mask, int64_t rows, bool all) const {
    if (grad == nullptr) return;
    for (int64_t row = 0; row < rows && (all || mask != nullptr); ++row)
      if (all || mask[row] == 0) std::memset(static_cast<T*>(grad) + row * call_.d, 0, call_.d * sizeof(T));
  }

  template <class T>
  slr_status blocks() {
    const bool backward = call_.backward, pairs = paired(isa_, call_.dtype), kept = call_.slopes != nullptr;
    const int64_t d = call_.d, panel = panel_of(isa_, call_.dtype), most = kPairBytes / sizeof(T);
    const int64_t element = pairs ? 2 : sizeof(T), wide_d = wide(d);
    int64_t block = rounded_up(rows_, panel), group = words_;
    if (!kept) {
      block = smaller(block, smaller(kPairSide, larger(most / rounded_up(longest_, kRowStep), panel) / panel * panel));
      group = smaller(group, larger(longest_, smaller(kPairSide, most / block)));
    }
    const int64_t tile = rounded_up(group, kRowStep), scores = block * tile;
    SignText job = {};
    job.dtype = call_.dtype, job.d = d, job.row_temperature = call_.row_temperature;
    job.sign = call_.sign, job.text = call_.text, job.shares = shares_;
    job.slopes = call_.slopes, job.grad = call_.grad, job.grad_stride = call_.m;
    job.grad_sign = call_.grad_sign, job.grad_text = call_.grad_text;
    const auto layout = [&](Parts& parts) {
      job.sign_columns = backward && kept ? nullptr : parts.take<char>((d + 1) * block * element);
      job.sign_panels = call_.grad_text != nullptr ? parts.take<char>(wide_d * block * element) : nullptr;
      job.text_panels = parts.take<char>(wide_d * tile * element);
      job.text_woven = pairs && call_.grad_sign != nullptr ? parts.take<char>(wide_d * tile * element) : nullptr;
      job.means = backward ? nullptr : parts.take<T>(smaller(group, texts_) * block);
      job.left = backward ? parts.take<char>(scores * element) : nullptr;
      job.woven = backward && pairs ? parts.take<char>(scores * element) : nullptr;
    };
    Parts sizes(nullptr);
    layout(sizes);
    const Memory memory(sizes.size());
    if (memory.data() == nullptr) return out_of_memory(call_.op);
    Parts parts(memory.data());
    layout(parts);
    for (int64_t row = 0; row < rows_; row += block) {
      job.rows = smaller(block, rows_ - row), job.lanes = rounded_up(job.rows, panel);
      job.sign_rows = sign_rows_ + row, job.clips = clips_ + row;
      const auto pack = SLR_SELECT_KERNEL(isa_, pack_signs);
      if (const slr_status status =
              items(job.lanes / panel, 0, [&](int64_t begin, int64_t end, void*) { pack(job, begin, end); }))
        return status;
      for (int64_t text = 0, word = 0; text < texts_;) {
        job.bounds = bounds_, job.columns = columns_ + text, job.texts = job.words = bounds_[0] = 0;
        while (text < texts_ && job.words + lengths_[text] <= group)
          bounds_[++job.texts] = job.words += lengths_[text++];
        job.tile = rounded_up(job.words, kRowStep), job.text_rows = text_rows_ + word;
        job.add_sign = word > 0, job.add_text = row > 0;
        if (const slr_status status = one<T>(job, panel)) return status;
        word += job.words;
      }
    }
    return SLR_OK;
  }

  // One block of signs against one group of texts.
  template <class T>
  slr_status one(const SignText& job, int64_t panel) {
    const auto pack = SLR_SELECT_KERNEL(isa_, pack_texts);
    const auto compare_panels = SLR_SELECT_KERNEL(isa_, compare);
    const auto add = SLR_SELECT_KERNEL(isa_, add_text_grad);
    if (const slr_status status =
            items(job.tile / kRowStep, 0, [&](int64_t begin, int64_t end, void*) { pack(job, begin, end); }))
      return status;
    if (const slr_status status =
            items(job.lanes / panel, 2 * job.tile * panel * sizeof(T),
                  [&](int64_t begin, int64_t end, void* scratch) { compare_panels(job, begin, end, scratch); }))
      return status;
    if (totals_ != nullptr)
      for (int64_t t = 0; t < job.texts; ++t)
        for (int64_t i = 0; i < job.rows; ++i)
          totals_[job.clips[i] * call_.m + job.columns[t]] += static_cast<const T*>(job.means)[t * job.lanes + i];
    if (call_.grad_text == nullptr) return SLR_OK;
    const int64_t panels = rounded_up(call_.d, panel) / panel;
    return items(chunks_of(job.words) * panels, 0, [&](int64_t begin, int64_t end, void*) { add(job, begin, end); });
  }

  template <class Body>
  slr_status items(int64_t count, int64_t scratch, const Body& body) const {
    const bool small =
        static_cast<double>(rows_) * static_cast<double>(words_) * static_cast<double>(call_.d) < 1 << 20;
    return for_items(call_.op, count, small ? 1 : call_.threads, scratch, body);
  }

  const Call& call_;
  const Isa isa_;
  int64_t rows_ = 0, words_ = 0, texts_ = 0, longest_ = 0;
  int64_t *sign_rows_ = nullptr, *clips_ = nullptr, *text_rows_ = nullptr;
  int64_t *bounds_ = nullptr, *columns_ = nullptr, *lengths_ = nullptr;  // of the texts that have words
  void* shares_ = nullptr;
  double* totals_ = nullptr;
};

slr_status run(const Call& call) {
  if (const slr_status status = check(call)) return status;
  Isa isa;
  if (const slr_status status = chosen_isa(&isa)) return status;
  Run work(call, isa);
  return call.dtype == SLR_F64 ? work.run<double>() : work.run<float>();
}

}  // namespace
}  // namespace slr

slr_status slr_sign_text_similarity_cpu(int32_t dtype, const void* sign, const uint8_t* sign_mask, int64_t b,
                                        int64_t sign_length, const void* text, const uint8_t* text_mask, int64_t m,
                                        int64_t text_length, int64_t d, double row_temperature, void* similarity,
                                        void* slopes, int32_t threads) {
  return slr::run({"sign_text_similarity_cpu", dtype, sign, sign_mask, text, text_mask, b, sign_length, m, text_length,
                   d, row_temperature, false, nullptr, similarity, slopes, nullptr, nullptr, threads});
}

slr_status slr_sign_text_similarity_grad_cpu(int32_t dtype, const void* grad, const void* sign,
                                             const uint8_t* sign_mask, int64_t b, int64_t sign_length, const void* text,
                                             const uint8_t* text_mask, int64_t m, int64_t text_length, int64_t d,
                                             double row_temperature, const void* slopes, void* grad_sign,
                                             void* grad_text, int32_t threads) {
  return slr::run({"sign_text_similarity_grad_cpu", dtype, sign, sign_mask, text, text_mask, b, sign_length, m,
                   text_length, d, row_temperature, true, grad, nullptr, const_cast<void*>(slopes), grad_sign,
                   grad_text, threads});
}
