#include "cpu/panels.h"

namespace slr {
namespace SLR_ISA {
namespace {

// gamma / deviation and what is left of a normalisation, [2][wide(C)]: y scale + shift.
template <class T>
void scale_and_shift(const void* norm, int64_t group, int64_t channels, T* to) {
  constexpr int width = Simd<T>::width;
  const T* const from = static_cast<const T*>(norm) + group * 4 * channels;
  for (int64_t c = 0; c < channels; c += width) {
    const int64_t some = channels - c;
    const Value<T> gamma = load_some(from + 2 * channels + c, some);
    write(to + c, load_some(from + c, some) * gamma);
    write(to + wide(channels) + c,
          fused(load_some(from + channels + c, some), gamma, load_some(from + 3 * channels + c, some)));
  }
}

// Rows of x, after normalisation, ReLU and dropout where there is a norm, into panels of To.
template <class T, class S, class To>
void load_rows(const S* x, int64_t row, int64_t valid, int64_t rows, int64_t channels, const T* affine,
               const Dropout& dropout, To* tile) {
  constexpr int width = Simd<T>::width;
  constexpr int64_t W = kPanel<T>;
  const Keep<T> keep(dropout);
  for (int64_t r = 0; r < rows; ++r) {
    const uint32_t key = row_key(dropout.base, row + r);
    for (int64_t c = 0; c < panels_of<T>(channels) * W; c += width) {
      Value<T> value = {};
      if (r < valid && c < channels) {
        value = load_some(x + r * channels + c, channels - c);
        if (affine != nullptr) {
          value = relu<T>(fused(value, read(affine + c), read(affine + wide(channels) + c)));
          if (dropout.probability > 0) value = keep(value, key, c);
        }
      }
      store(tile + (c / W * rows + r) * W + c % W, value);
    }
  }
}

template <class K, class S>
void tiles_of_map(const Map& job, int64_t begin, int64_t end, char* scratch) {
  using T = typename K::Compute;
  using E = typename K::Element;
  constexpr int width = Simd<T>::width;
  constexpr int64_t W = kPanel<T>;
  const int64_t rows = job.tiles.size;
  T* const result = reinterpret_cast<T*>(scratch);
  T* const affine = result + rows * wide(job.outputs);
  E* const tile = reinterpret_cast<E*>(affine + 2 * wide(job.inputs));
  for (int64_t t = begin; t < end; ++t) {
    const Range range = range_of(job.tiles, t);
    if (job.norm != nullptr) scale_and_shift(job.norm, range.group, job.inputs, affine);
    load_rows<T>(static_cast<const S*>(job.x) + range.first * job.inputs, range.first, range.valid, rows, job.inputs,
                 job.norm == nullptr ? nullptr : affine, job.dropout, tile);
    fill_tile(job.bias, false, 1, rows * W, job.outputs, result);
    multiply_tile<K>(tile, rows, job.inputs, static_cast<const E*>(job.weight), job.outputs, result);
    S* const y = static_cast<S*>(job.y) + range.first * job.outputs;
    for (int64_t r = 0; r < range.valid; ++r)
      for (int64_t c = 0; c < job.outputs; c += width) {
        T* const at = result + (c / W * rows + r) * W + c % W;
        write(at, as_stored<S>(read(at)));  // statistics are those of the stored values
        store_some(y + r * job.outputs + c, read(at), job.outputs - c);
      }
    T* const partial = static_cast<T*>(job.partial) + t * 2 * job.outputs;
    for (int64_t c = 0; c < job.outputs; c += width) {
      const T* const column = result + c / W * rows * W + c % W;
      Spread<T> spread;
      spread.add_to_mean(column, range.valid);
      spread.finish_mean(range.valid);
      spread.add(column, range.valid);
      spread.finish(range.valid);
      store_some(partial + c, spread.mean, job.outputs - c);
      store_some(partial + job.outputs + c, spread.squares, job.outputs - c);
    }
  }
}

template <class K, class S>
void tiles_of_map_grad(const MapGrad& job, int64_t begin, int64_t end, char* scratch, void* total) {
  using T = typename K::Compute;
  using E = typename K::Element;
  constexpr int width = Simd<T>::width;
  constexpr int64_t W = kPanel<T>;
  const int64_t rows = job.tiles.size, inputs = job.inputs, outputs = job.outputs;
  const int64_t in_panels = panels_of<T>(inputs), out_panels = panels_of<T>(outputs);
  T* const grad = reinterpret_cast<T*>(scratch);
  T* const mapped = grad + rows * wide(outputs);  // x as the map saw it
  T* const result = mapped + rows * wide(inputs);
  T* const chain = result + rows * wide(inputs);
  T* const affine = chain + kChain * wide(outputs);
  E* const grad_rows_buffer = reinterpret_cast<E*>(affine + 2 * wide(inputs));
  E *grad_rows, *grad_columns, *x_columns;
  if constexpr (K::pairs) {
    grad_rows = grad_rows_buffer;
    grad_columns = grad_rows + rows * wide(outputs);
    x_columns = grad_columns + rows * wide(outputs);
  } else {
    grad_rows = grad_columns = grad;
    x_columns = mapped;
  }
  T* const weight_sums = static_cast<T*>(total);
  T *const bias_sums = weight_sums + in_panels * wide(outputs) * W, *const bias_rest = bias_sums + wide(outputs);
  const Keep<T> keep(job.dropout), x_keep(job.x_dropout);
  for (int64_t t = begin; t < end; ++t) {
    const Range range = range_of(job.tiles, t);
    prepare(job.norm, range.group, job.tiles.groups, outputs, chain);
    const S* const masked = static_cast<const S*>(job.grad) + range.first * outputs;
    const S* const y = static_cast<const S*>(job.y) + range.first * outputs;
    std::memset(grad, 0, rows * out_panels * W * sizeof(T));
    for (int64_t r = 0; r < range.valid; ++r) {
      const uint32_t key = row_key(job.dropout.base, range.first + r);
      for (int64_t c = 0; c < outputs; c += width) {
        const int64_t at = r * outputs + c, some = outputs - c;
        Value<T> value = load_some(masked + at, some);
        if (job.dropout.probability > 0) value = keep(value, key, c);
        value = through(chain, outputs, c, value, load_some(y + at, some));
        write(grad + (c / W * rows + r) * W + c % W, value);
      }
    }
    for (int64_t c = 0; c < outputs; c += width)
      add_column(grad + c / W * rows * W + c % W, range.valid, bias_sums + c, bias_rest + c);
    const S* const x = static_cast<const S*>(job.x) + range.first * inputs;
    if (job.x_norm != nullptr) scale_and_shift(job.x_norm, range.group, inputs, affine);
    load_rows<T>(x, range.first, range.valid, rows, inputs, job.x_norm == nullptr ? nullptr : affine, job.x_dropout,
                 mapped);
    if constexpr (K::pairs) {
      as_rows<K>(grad, rows * out_panels * W, grad_rows);
      weave<K>(grad_rows, rows * out_panels, grad_columns);
      E* const x_rows = reinterpret_cast<E*>(result);  // not needed yet
      as_rows<K>(mapped, rows * in_panels * W, x_rows);
      weave<K>(x_rows, rows * in_panels, x_columns);
    }
    multiply_transposed<K>(grad_columns, outputs, x_columns, inputs, rows, weight_sums);
    std::memset(result, 0, rows * in_panels * W * sizeof(T));
    multiply_tile<K>(grad_rows, rows, outputs, static_cast<const E*>(job.weight), inputs, result);
    S* const grad_x = static_cast<S*>(job.grad_x) + range.first * inputs;
    T* const partial = static_cast<T*>(job.partial) + (job.partial == nullptr ? 0 : t * 2 * inputs);
    if (job.partial != nullptr) std::memset(partial, 0, 2 * inputs * sizeof(T));
    const T* const norm = static_cast<const T*>(job.x_norm) + (job.x_norm == nullptr ? 0 : range.group * 4 * inputs);
    for (int64_t r = 0; r < range.valid; ++r)
      for (int64_t c = 0; c < inputs; c += width) {
        const int64_t at = (c / W * rows + r) * W + c % W, some = inputs - c;
        Value<T> value = read(result + at);
        if (job.x_norm != nullptr) {
          const Value<T> seen = read(mapped + at);
          value = seen <= T{0} ? Value<T>{} : value * x_keep.scale;
          const Value<T> unit =
              fused(load_some(x + r * inputs + c, some), load_some(norm + c, some), load_some(norm + inputs + c, some));
          store_some(partial + c, load_some(partial + c, some) + value, some);
          store_some(partial + inputs + c, fused(value, unit, load_some(partial + inputs + c, some)), some);
        }
        store_some(grad_x + r * inputs + c, value, some);
      }
  }
}

template <class T>
Value<T> unit(const T* norm, int64_t channels, int64_t c, Value<T> y) {
  return fused(y, load_some(norm + c, channels - c), load_some(norm + channels + c, channels - c));
}

template <class T>
Value<T> normalized(const T* norm, int64_t channels, int64_t c, Value<T> y) {
  const int64_t some = channels - c;
  return fused(unit(norm, channels, c, y), load_some(norm + 2 * channels + c, some),
               load_some(norm + 3 * channels + c, some));
}

template <class K, class S>
void tiles_of_output(const Output& job, int64_t begin, int64_t end) {
  using T = typename K::Compute;
  constexpr int width = Simd<T>::width;
  for (int64_t t = begin; t < end; ++t) {
    const Range range = range_of(job.tiles, t);
    const int64_t first = range.first * job.channels;
    S* const out = static_cast<S*>(job.out) + first;
    const T* const norm = static_cast<const T*>(job.norm) + range.group * 4 * job.channels;
    const T* const other = job.residual_norm == nullptr
                               ? nullptr
                               : static_cast<const T*>(job.residual_norm) + range.group * 4 * job.channels;
    const S* const y = static_cast<const S*>(job.y) + first;
    const S* const residual = job.residual == nullptr ? nullptr : static_cast<const S*>(job.residual) + first;
    const Keep<T> keep(job.dropout);
    for (int64_t r = 0; r < range.valid; ++r) {
      const uint32_t key = row_key(job.dropout.base, range.first + r);
      for (int64_t c = 0; c < job.channels; c += width) {
        const int64_t at = r * job.channels + c, some = job.channels - c;
        Value<T> value = normalized(norm, job.channels, c, load_some(y + at, some));
        if (job.dropout.probability > 0) value = keep(value, key, c);
        if (residual != nullptr) {
          const Value<T> x = load_some(residual + at, some);
          value += other == nullptr ? x : normalized(other, job.channels, c, x);
        }
        store_some(out + at, relu<T>(value), some);
      }
    }
  }
}

template <class K, class S>
void tiles_of_output_grad(const OutputGrad& job, int64_t begin, int64_t end) {
  using T = typename K::Compute;
  constexpr int width = Simd<T>::width;
  const int64_t channels = job.channels, sums = job.residual_norm == nullptr ? 2 : 4;
  for (int64_t t = begin; t < end; ++t) {
    const Range range = range_of(job.tiles, t);
    const int64_t first = range.first * channels;
    S* const masked = static_cast<S*>(job.masked) + first;
    const S* const grad = static_cast<const S*>(job.grad) + first;
    const T* const norm = static_cast<const T*>(job.norm) + range.group * 4 * channels;
    const T* const other =
        job.residual_norm == nullptr ? nullptr : static_cast<const T*>(job.residual_norm) + range.group * 4 * channels;
    const S* const y = static_cast<const S*>(job.y) + first;
    const S* const residual = job.residual == nullptr ? nullptr : static_cast<const S*>(job.residual) + first;
    T* const partial = static_cast<T*>(job.partial) + t * sums * channels;
    std::memset(partial, 0, sums * channels * sizeof(T));
    const auto add = [&](int64_t row, int64_t c, Value<T> value) {
      T* const to = partial + row * channels + c;
      store_some(to, load_some(to, channels - c) + value, channels - c);
    };
    const Keep<T> keep(job.dropout);
    for (int64_t r = 0; r < range.valid; ++r) {
      const uint32_t key = row_key(job.dropout.base, range.first + r);
      for (int64_t c = 0; c < channels; c += width) {
        const int64_t at = r * channels + c, some = channels - c;
        const Value<T> mapped = load_some(y + at, some),
                       x = residual == nullptr ? Value<T>{} : load_some(residual + at, some);
        Value<T> value = normalized(norm, channels, c, mapped);
        if (job.dropout.probability > 0) value = keep(value, key, c);
        if (residual != nullptr) value += other == nullptr ? x : normalized(other, channels, c, x);
        Value<T> g = load_some(grad + at, some);
        g = value <= T{0} ? Value<T>{} : g;
        store_some(masked + at, g, some);
        if (other != nullptr) {
          add(2, c, g);
          add(3, c, g * unit(other, channels, c, x));
        }
        if (job.dropout.probability > 0) g = keep(g, key, c);
        add(0, c, g);
        add(1, c, g * unit(norm, channels, c, mapped));
      }
    }
  }
}

}  // namespace

void gcn_map(const Map& job, int64_t begin, int64_t end, char* scratch) {
  SLR_SWITCH_PRODUCTS(job.dtype, tiles_of_map, job, begin, end, scratch)
}

void gcn_map_grad(const MapGrad& job, int64_t begin, int64_t end, char* scratch, void* sums) {
  SLR_SWITCH_PRODUCTS(job.dtype, tiles_of_map_grad, job, begin, end, scratch, sums)
}

void gcn_output(const Output& job, int64_t begin, int64_t end) {
  SLR_SWITCH_PRODUCTS(job.dtype, tiles_of_output, job, begin, end)
}

void gcn_output_grad(const OutputGrad& job, int64_t begin, int64_t end) {
  SLR_SWITCH_PRODUCTS(job.dtype, tiles_of_output_grad, job, begin, end)
}

}  // namespace SLR_ISA
}  // namespace slr
