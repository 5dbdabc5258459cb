#include "common/neighbor_kl.h"

#include "cpu/bank_tiles.h"
#include "cpu/selection.h"

namespace slr {
namespace SLR_ISA {
namespace {

constexpr double kLog2E = 1.44269504088896340736, kLn2 = 0.693147180559945309417;

template <class T>
constexpr int64_t kLanes = kBlockBytes / sizeof(T);

template <class T>
constexpr T kLowest = sizeof(T) == 4 ? static_cast<T>(-0x1.fffffep127) : static_cast<T>(-0x1.fffffffffffffp1023);

// A column of scores, from its row n.
template <class T>
T* column(const NeighborKl& job, void* scores, int64_t block, int v, int64_t n) {
  const int64_t size = job.teacher_bank.n * Simd<T>::width;
  return static_cast<T*>(scores) + (block * kColumns + v) * size + n * Simd<T>::width;
}

// What decides, and weighs, one column of neighbours.
template <class T>
struct Column {
  Value<T> border, top;  // the teacher's
  const int64_t* tie_end;
  int64_t first_end, last_end;  // the extremes of tie_end
  T teacher_scale, student_scale;

  Column(const NeighborKl& job, int64_t block, int v)
      : teacher_scale(static_cast<T>(kLog2E / job.teacher_temperature)),
        student_scale(static_cast<T>(kLog2E / job.student_temperature)) {
    const int64_t at = block * kLanes<T> + v * Simd<T>::width;
    border = read(static_cast<const T*>(job.border) + at);
    top = read(static_cast<const T*>(job.teacher_top) + at);
    tie_end = job.tie_end + at;
    first_end = last_end = tie_end[0];
    for (int i = 1; i < Simd<T>::width; ++i) {
      first_end = tie_end[i] < first_end ? tie_end[i] : first_end;
      last_end = tie_end[i] > last_end ? tie_end[i] : last_end;
    }
  }

  // Whether row n is a neighbour, by its teacher scores; everything is where the border is NaN.
  Mask<T> chosen(Value<T> score, int64_t n) const {
    if (n < first_end) return ~(score < border);
    if (n >= last_end) return ~(score <= border);
    Mask<T> late;
    for (int i = 0; i < Simd<T>::width; ++i) late[i] = n >= tie_end[i] ? -1 : 0;
    return ~((score < border) | ((score == border) & late));
  }
};

// Calls body(first row, rows) for every tile of a segment.
template <class Body>
void tiles(const NeighborKl& job, int64_t segment, const Body& body) {
  const int64_t first = segment * job.segment_rows, n = job.teacher_bank.n;
  const int64_t end = first + job.segment_rows < n ? first + job.segment_rows : n;
  for (int64_t at = first; at < end; at += kTileRows) body(at, at + kTileRows < end ? kTileRows : end - at);
}

template <class T>
void teacher_segment(const NeighborKl& job, int64_t segment, void* scratch) {
  const Layout layout = {Simd<T>::width, job.teacher_bank.n * Simd<T>::width};
  Reader<T> reader(job.teacher_bank, job.teacher.high != nullptr, scratch);
  tiles(job, segment, [&](int64_t first, int64_t rows) {
    reader.load(first, rows);
    for (int64_t block = 0; block < job.blocks; ++block)
      reader.score(job.teacher, block, columns_of<T>(job.b, block), column<T>(job, job.teacher_scores, block, 0, first),
                   layout);
  });
}

template <class T>
void border_of(const NeighborKl& job, int64_t item) {
  const int64_t block = item / kColumns, v = item % kColumns;
  if (v >= columns_of<T>(job.b, block)) return;
  Border<T> found[Simd<T>::width];
  find_borders(column<T>(job, job.teacher_scores, block, static_cast<int>(v), 0), job.teacher_bank.n, job.k, found);
  for (int i = 0; i < Simd<T>::width; ++i) {
    const int64_t at = block * kLanes<T> + v * Simd<T>::width + i;
    static_cast<T*>(job.border)[at] = found[i].has_nan ? static_cast<T>(__builtin_nan("")) : found[i].border;
    static_cast<T*>(job.teacher_top)[at] = found[i].top;
    job.tie_end[at] = found[i].tie_end;
  }
}

// The sums of both softmaxes over one tile of one column; scores of rows that are no neighbours become -inf.
template <class T>
void statistics(const NeighborKl& job, int64_t segment, int64_t block, int v, int64_t first, int64_t rows) {
  constexpr int width = Simd<T>::width;
  const int64_t at = (segment * job.blocks + block) * kLanes<T> + v * width;
  T *const top = static_cast<T*>(job.student_top) + at, *const teacher_total = static_cast<T*>(job.teacher_total) + at;
  T *const student_total = static_cast<T*>(job.student_total) + at, *const cross = static_cast<T*>(job.cross) + at;
  const Column<T> given(job, block, v);
  T* const teacher = column<T>(job, job.teacher_scores, block, v, first);
  T* const student = column<T>(job, job.student_scores, block, v, first);
  const Value<T> before = read(top), zero = {}, none = fill(static_cast<T>(-__builtin_inf()));
  Value<T> now = before;
  for (int64_t n = 0; n < rows; ++n) {
    const Value<T> score = read(teacher + n * width);
    const Mask<T> chosen = given.chosen(score, first + n);
    const Value<T> other = chosen ? read(student + n * width) : none;
    write(teacher + n * width, chosen ? score : none);
    write(student + n * width, other);
    now = larger(now, other);
  }
  Value<T> all = read(student_total), difference = read(cross), weights = read(teacher_total);
  if (any(now > before)) {
    all *= exp2((before - now) * given.student_scale);
    difference += weights == 0 ? zero : (now - before) * given.student_scale * weights;
    write(top, now);
  }
  Value<T> p = {}, q = {}, pq = {};
  for (int64_t n = 0; n < rows; ++n) {
    const Value<T> score = read(teacher + n * width), t = (score - given.top) * given.teacher_scale;
    const Value<T> u = (read(student + n * width) - now) * given.student_scale, weight = exp2(t);
    p += weight;
    q += exp2(u);
    pq += score > none ? weight * (t - u) : zero;
  }
  write(teacher_total, weights + p);
  write(student_total, all + q);
  write(cross, difference + pq);
}

template <class T>
void student_segment(const NeighborKl& job, int64_t segment, void* scratch) {
  const Layout layout = {Simd<T>::width, job.teacher_bank.n * Simd<T>::width};
  Reader<T> reader(job.student_bank, job.student.high != nullptr, scratch);
  for (int64_t i = segment * job.blocks * kLanes<T>; i < (segment + 1) * job.blocks * kLanes<T>; ++i) {
    static_cast<T*>(job.student_top)[i] = kLowest<T>;
    static_cast<T*>(job.teacher_total)[i] = static_cast<T*>(job.student_total)[i] = static_cast<T*>(job.cross)[i] = 0;
  }
  tiles(job, segment, [&](int64_t first, int64_t rows) {
    reader.load(first, rows);
    for (int64_t block = 0; block < job.blocks; ++block) {
      const int columns = columns_of<T>(job.b, block);
      reader.score(job.student, block, columns, column<T>(job, job.student_scores, block, 0, first), layout);
      for (int v = 0; v < columns; ++v) statistics<T>(job, segment, block, v, first, rows);
    }
  });
}

template <class T>
void loss_of(const NeighborKl& job, int64_t block) {
  for (int64_t lane = 0; lane < kLanes<T>; ++lane) {
    const int64_t row = block * kLanes<T> + lane;
    const auto at = [&](const void* partial, int64_t s) {
      return static_cast<double>(static_cast<const T*>(partial)[s * job.blocks * kLanes<T> + row]);
    };
    double top = kLowest<T>, teacher = 0, student = 0, cross = 0;
    const double scale = kLog2E / job.student_temperature;
    if (row < job.b) {
      for (int64_t s = 0; s < job.segments; ++s) top = at(job.student_top, s) > top ? at(job.student_top, s) : top;
      for (int64_t s = 0; s < job.segments; ++s) {
        teacher += at(job.teacher_total, s);
        student += at(job.student_total, s) * __builtin_exp2((at(job.student_top, s) - top) * scale);
        cross += at(job.cross, s);
        if (at(job.teacher_total, s) != 0) cross += (top - at(job.student_top, s)) * scale * at(job.teacher_total, s);
      }
      static_cast<T*>(job.loss)[row] =
          static_cast<T>(cross / teacher * kLn2 - __builtin_log(teacher) + __builtin_log(student));
    }
    static_cast<T*>(job.shift)[row] = static_cast<T>(top);
    static_cast<T*>(job.teacher_factor)[row] = static_cast<T>(1 / teacher);
    static_cast<T*>(job.student_factor)[row] = static_cast<T>(1 / student);
  }
}

template <class T>
void grad_segment(const NeighborKl& job, int64_t segment, char* scratch) {
  constexpr int width = Simd<T>::width;
  constexpr Layout layout = Reader<T>::block_layout;
  const int64_t size = job.student_bank.d * kLanes<T>;
  Reader<T> reader(job.student_bank, job.student.high != nullptr, scratch);
  T* const weights = reinterpret_cast<T*>(scratch + Reader<T>::scratch(job.student_bank.d));
  T* const sum = static_cast<T*>(job.sum) + segment * job.blocks * size;
  std::memset(sum, 0, job.blocks * size * sizeof(T));
  const auto factor = [](const void* factors, int64_t at) { return read(static_cast<const T*>(factors) + at); };
  tiles(job, segment, [&](int64_t first, int64_t rows) {
    reader.load(first, rows);
    for (int64_t block = 0; block < job.blocks; ++block) {
      const int columns = columns_of<T>(job.b, block);
      for (int v = 0; v < columns; ++v) {
        const Column<T> given(job, block, v);
        const int64_t at = block * kLanes<T> + v * width;
        const Value<T> shift = factor(job.shift, at), by_teacher = factor(job.teacher_factor, at),
                       by_student = factor(job.student_factor, at);
        const T* const teacher = column<T>(job, job.teacher_scores, block, v, first);
        const T* const student = column<T>(job, job.student_scores, block, v, first);
        for (int64_t n = 0; n < rows; ++n) {
          const Value<T> p = exp2((read(teacher + n * width) - given.top) * given.teacher_scale) * by_teacher;
          const Value<T> q = exp2((read(student + n * width) - shift) * given.student_scale) * by_student;
          write(weights + n * kLanes<T> + v * width, q - p);
        }
      }
      reader.sum(weights, layout, columns, sum + block * size);
    }
  });
}

template <class T>
void finish(const NeighborKl& job, int64_t block) {
  const int64_t d = job.student_bank.d, size = d * kLanes<T>, rest = job.b - block * kLanes<T>;
  const T scale = static_cast<T>(1 / job.student_temperature);
  T* const to = static_cast<T*>(job.grad) + block * kLanes<T> * d;
  for (int64_t j = 0; j < d; ++j) {
    T row[kLanes<T>];
    for (int64_t v = 0; v < kLanes<T>; v += Simd<T>::width) {
      Value<T> total = {};
      for (int64_t s = 0; s < job.segments; ++s)
        total += read(static_cast<const T*>(job.sum) + (s * job.blocks + block) * size + j * kLanes<T> + v);
      write(row + v, total * scale);
    }
    for (int64_t i = 0; i < kLanes<T> && i < rest; ++i) to[i * d + j] = row[i];
  }
}

}  // namespace

int64_t neighbor_kl_columns() { return kColumns; }

int64_t neighbor_kl_scratch(const NeighborKl& job) {
  const int64_t d = job.teacher_bank.d > job.student_bank.d ? job.teacher_bank.d : job.student_bank.d;
  return (job.dtype == SLR_F64 ? Reader<double>::scratch(d) : Reader<float>::scratch(d)) + kTileRows * kBlockBytes;
}

#define SLR_STEP(name, function, parameters, ...)                                          \
  void name parameters {                                                                   \
    for (int64_t i = begin; i < end; ++i)                                                  \
      job.dtype == SLR_F64 ? function<double>(__VA_ARGS__) : function<float>(__VA_ARGS__); \
  }

SLR_STEP(neighbor_kl_teacher, teacher_segment, (const NeighborKl& job, int64_t begin, int64_t end, void* scratch), job,
         i, scratch)
SLR_STEP(neighbor_kl_border, border_of, (const NeighborKl& job, int64_t begin, int64_t end), job, i)
SLR_STEP(neighbor_kl_student, student_segment, (const NeighborKl& job, int64_t begin, int64_t end, void* scratch), job,
         i, scratch)
SLR_STEP(neighbor_kl_loss, loss_of, (const NeighborKl& job, int64_t begin, int64_t end), job, i)
SLR_STEP(neighbor_kl_grad, grad_segment, (const NeighborKl& job, int64_t begin, int64_t end, void* scratch), job, i,
         static_cast<char*>(scratch))
SLR_STEP(neighbor_kl_finish, finish, (const NeighborKl& job, int64_t begin, int64_t end), job, i)

}  // namespace SLR_ISA
}  // namespace slr
