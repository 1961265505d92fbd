/* Building blocks of packed_texts.c and cached_rows.c: vectors that are float or (low) bfloat16 in memory and float in
 * registers, products of small matrices, and the parts of a softmax.
 *
 * Shapes: K head width, a multiple of 8; KP filled up to whole panels; T positions, PP filled up. */
#pragma once
#include <math.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif
#if defined(__AVX512F__)
#define W 16
#else
#define W 8
#endif
#define PANEL (2 * W) /* columns of a product that are computed together */
#define BLOCK 6       /* rows of a product that are computed together */
#define SOON 12       /* rows from now one is prefetched */
#define INLINE static inline __attribute__((always_inline))

/* Products work on cells of 32 bits: one float, or two bfloat16 where multiplying in pairs is faster. AMD's cores then do
 * twice as many products, Intel's (without AMX) half as many. */
#if defined(__AVX512BF16__) && defined(__AVX512VL__) && (defined(__znver3__) || defined(__znver4__) || defined(__znver5__))
#define CELL(low) ((low) ? 2 : 1)
#else
#define CELL(low) 1
#endif

typedef float Vec __attribute__((vector_size(4 * W)));
typedef uint32_t Bits __attribute__((vector_size(4 * W)));
typedef int32_t Ints __attribute__((vector_size(4 * W)));
typedef uint16_t Halves __attribute__((vector_size(2 * W)));
typedef float Loose __attribute__((vector_size(4 * W), aligned(4), may_alias)); /* at any address */
typedef uint16_t LooseHalves __attribute__((vector_size(2 * W), aligned(2), may_alias));

typedef float Eight __attribute__((vector_size(32), aligned(4), may_alias)); /* heads are multiples of eight wide */
typedef uint32_t EightBits __attribute__((vector_size(32)));
typedef uint16_t EightHalves __attribute__((vector_size(16), aligned(2), may_alias));

typedef struct { int64_t from, to; } Span;

INLINE Vec all(float x) { return x - (Vec){0}; }

INLINE Bits widened(Halves x) {
#if defined(__AVX512F__)
    return (Bits)_mm512_cvtepu16_epi32((__m256i)x);
#else
    return __builtin_convertvector(x, Bits);
#endif
}

INLINE Vec get(const void *base, int64_t i, int low) {
    if (!low) return *(const Loose *)((const float *)base + i);
    return (Vec)(widened(*(const LooseHalves *)((const uint16_t *)base + i)) << 16);
}

INLINE float get1(const void *base, int64_t i, int low) {
    if (!low) return ((const float *)base)[i];
    union { uint32_t u; float f; } x = {(uint32_t)((const uint16_t *)base)[i] << 16};
    return x.f;
}

INLINE Eight get8(const void *base, int64_t i, int low) {
    if (!low) return *(const Eight *)((const float *)base + i);
#if defined(__AVX2__)
    return (Eight)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)((const uint16_t *)base + i))), 16);
#else
    return (Eight)(__builtin_convertvector(*(const EightHalves *)((const uint16_t *)base + i), EightBits) << 16);
#endif
}

INLINE void put8(void *base, int64_t i, Eight v, int low) {
    if (!low) {
        *(Eight *)((float *)base + i) = v;
        return;
    }
#if defined(__AVX512BF16__) && defined(__AVX512VL__)
    *(EightHalves *)((uint16_t *)base + i) = (EightHalves)_mm256_cvtneps_pbh((__m256)v);
#else
    EightBits u = (EightBits)v, nan = (EightBits)(v != v);
    u = ((u + 0x7fff + ((u >> 16) & 1)) >> 16 & ~nan) | (0x7fc0 & nan);
    *(EightHalves *)((uint16_t *)base + i) = __builtin_convertvector(u, EightHalves);
#endif
}

INLINE uint16_t halved(float value) { /* to the nearest, ties to even; a NaN stays one */
    union { float f; uint32_t u; } x = {value};
    return value != value ? 0x7fc0 : (uint16_t)((x.u + 0x7fff + ((x.u >> 16) & 1)) >> 16);
}

INLINE Halves halves(Vec v) {
#if defined(__AVX512BF16__)
    return (Halves)_mm512_cvtneps_pbh((__m512)v);
#else
    Bits u = (Bits)v, nan = (Bits)(v != v);
    u = ((u + 0x7fff + ((u >> 16) & 1)) >> 16 & ~nan) | (0x7fc0 & nan);
    return __builtin_convertvector(u, Halves);
#endif
}

INLINE void put(void *base, int64_t i, Vec v, int low) {
    if (low) *(LooseHalves *)((uint16_t *)base + i) = halves(v);
    else *(Loose *)((float *)base + i) = v;
}

/* Cells with one vector's elements as first halves and the other's as second halves. */
INLINE Vec paired(Halves first, Halves second) {
    return (Vec)(widened(first) | widened(second) << 16);
}

INLINE void put1(void *base, int64_t i, float v, int low) {
    if (low) ((uint16_t *)base)[i] = halved(v);
    else ((float *)base)[i] = v;
}

INLINE float total(Vec v) { /* summed as a tree */
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)v);
#endif
    for (int half = W / 2; half; half /= 2)
        for (int i = 0; i < half; i++) v[i] += v[i + half];
    return v[0];
}

INLINE float greatest(Vec v) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)v);
#endif
    for (int half = W / 2; half; half /= 2)
        for (int i = 0; i < half; i++) v[i] = v[i] > v[i + half] ? v[i] : v[i + half];
    return v[0];
}

INLINE Vec chosen(Ints which, Vec a, Vec b) { return (Vec)((which & (Ints)a) | (~which & (Ints)b)); }

INLINE Vec larger(Vec a, Vec b) { return chosen(a > b, a, b); }

/* e^x to 2e-7: 2^n times a Taylor series within half a factor of 2. Below -87 it is 0. */
INLINE Vec exponential(Vec x) {
#if defined(__AVX512F__)
    __mmask16 stays = _mm512_cmp_ps_mask((__m512)x, (__m512)all(-87.f), _CMP_NLT_UQ); /* true for NaN */
    Vec n = (Vec)_mm512_roundscale_ps((__m512)(x * 1.44269504f), 0);
#else
    Ints gone = x < -87.f;
    x = chosen(gone, all(-87.f), chosen(x > 88.f, all(88.f), x));
    Vec shifted = x * 1.44269504f + 12582912.f, n = shifted - 12582912.f; /* 1.5 * 2^23: rounds to a whole number */
#endif
    Vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    Vec e = 1.f + r * (1.f + r * (1.f / 2 + r * (1.f / 6 + r * (1.f / 24 + r * (1.f / 120 + r * (1.f / 720))))));
#if defined(__AVX512F__)
    return (Vec)_mm512_maskz_scalef_ps(stays, (__m512)e, (__m512)n); /* denormals would take a hundred times as long */
#else
    Ints power = (__builtin_convertvector(chosen(n == n, n, all(0.f)), Ints) + 127) << 23;
    return chosen(gone, all(0.f), e * (Vec)power);
#endif
}

static int me(void) {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

static Span mine(int64_t n) { /* this thread's part of n things */
    int64_t threads = 1;
#ifdef _OPENMP
    threads = omp_get_num_threads();
#endif
    Span span = {n * me() / threads, n * (me() + 1) / threads};
    return span;
}

static float *room(int64_t floats) {
    void *memory = NULL;
    return posix_memalign(&memory, 64, (size_t)(floats + 64) * sizeof(float)) ? NULL : memory;
}

/* sum + a * b, lane by lane; of cells that are pairs, both products. */
INLINE Vec summed(Vec sum, const float *a, Vec b, int cell) {
#if defined(__AVX512BF16__)
    if (cell == 2) return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_ps(*a), (__m512bh)b);
#endif
    return sum + *a * b;
}

/* Prefetches memory far from what was read before, which the processor does not predict. */
INLINE void expected(const void *base, int64_t i, int64_t n, int low) {
    const char *at = (const char *)base + i * (low ? 2 : 4);
    for (int64_t byte = 0; byte < n * (low ? 2 : 4); byte += 64) __builtin_prefetch(at + byte);
}

/* c[R, PANEL] = (add: c +) the sum over d of a[r * a_row + d * a_column] * b[d * b_row ..]; a, b in cells, c float. */
INLINE void tile(const float *a, int64_t a_row, int64_t a_column, const float *b, int64_t b_row, float *c,
                 int64_t c_row, int64_t depth, int add, int cell, int R) {
    Vec sum[BLOCK][2];
    for (int r = 0; r < R; r++)
        for (int v = 0; v < 2; v++) sum[r][v] = add ? *(Vec *)(c + r * c_row + v * W) : (Vec){0};
    for (int64_t d = 0; d < depth; d++) {
        Vec left = *(const Vec *)(b + d * b_row), right = *(const Vec *)(b + d * b_row + W);
        for (int r = 0; r < R; r++) {
            const float *x = a + r * a_row + d * a_column;
            sum[r][0] = summed(sum[r][0], x, left, cell);
            sum[r][1] = summed(sum[r][1], x, right, cell);
        }
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < 2; v++) *(Vec *)(c + r * c_row + v * W) = sum[r][v];
}

/* The same for any multiple of PANEL columns and at most BLOCK rows. */
INLINE void product_or_sum(const float *a, int64_t a_row, int64_t a_column, const float *b, int64_t b_row, float *c,
                           int64_t c_row, int64_t depth, int64_t rows, int64_t columns, int add, int cell) {
    for (int64_t n = 0; n < columns; n += PANEL)
        switch (rows) {
#define CASE(R) case R: tile(a, a_row, a_column, b + n, b_row, c + n, c_row, depth, add, cell, R); break
            CASE(1);
            CASE(2);
            CASE(3);
            CASE(4);
            CASE(5);
            CASE(6);
#undef CASE
        }
}

static void product(const float *a, int64_t a_row, int64_t a_column, const float *b, int64_t b_row, float *c,
                    int64_t c_row, int64_t depth, int64_t rows, int64_t columns, int cell) {
    if (cell == 1) product_or_sum(a, a_row, a_column, b, b_row, c, c_row, depth, rows, columns, 0, 1);
    else product_or_sum(a, a_row, a_column, b, b_row, c, c_row, depth, rows, columns, 0, 2);
}

static void added(const float *a, int64_t a_row, int64_t a_column, const float *b, int64_t b_row, float *c,
                  int64_t c_row, int64_t depth, int64_t rows, int64_t columns, int cell) {
    if (cell == 1) product_or_sum(a, a_row, a_column, b, b_row, c, c_row, depth, rows, columns, 1, 1);
    else product_or_sum(a, a_row, a_column, b, b_row, c, c_row, depth, rows, columns, 1, 2);
}

INLINE int64_t padded(int64_t n) { return (n + PANEL - 1) / PANEL * PANEL; }

/* Rotates a head by a position's angles, in place; the sign of the first half is in sin. */
INLINE void rotated(float *x, int64_t K, const float *cos, const float *sin) {
    int64_t half = K / 2;
    for (int64_t k = 0; k < half; k++) {
        float left = x[k], right = x[k + half];
        x[k] = left * cos[k] + right * sin[k];
        x[k + half] = right * cos[k + half] + left * sin[k + half];
    }
}

/* Rows of one head, rotated (where cos is given) and scaled. */
INLINE void fetch(const void *in, int64_t row, int64_t T, int64_t K, const float *cos, const float *sin, float scale,
                  float *out, int64_t KP, int low) {
    for (int64_t t = 0; t < T; t++) {
        float *to = out + t * KP;
        expected(in, (t + SOON) * row, K, low);
        for (int64_t k = 0; k < K; k += 8) *(Eight *)(to + k) = get8(in, t * row + k, low) * scale;
        for (int64_t k = K; k < KP; k += 8) *(Eight *)(to + k) = (Eight){0};
        if (cos) rotated(to, K, cos + t * K, sin + t * K);
    }
}

/* out[8 rows of k][8 columns of t] = in[8 rows of t][8 columns of k] */
INLINE void turn8(const float *in, int64_t in_row, float *out, int64_t out_row) {
    Eight a[8], b[8];
    for (int i = 0; i < 8; i++) a[i] = *(const Eight *)(in + i * in_row);
    for (int i = 0; i < 8; i += 2) {
        b[i] = __builtin_shufflevector(a[i], a[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
        b[i + 1] = __builtin_shufflevector(a[i], a[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            a[i + 2 * j] = __builtin_shufflevector(b[i + j], b[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
            a[i + 2 * j + 1] = __builtin_shufflevector(b[i + j], b[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        }
    for (int i = 0; i < 4; i++) {
        *(Eight *)(out + i * out_row) = __builtin_shufflevector(a[i], a[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        *(Eight *)(out + (i + 4) * out_row) = __builtin_shufflevector(a[i], a[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
}

/* Transposes [T, KP] to [K, PP], padded with zeros to a whole panel; positions before `from` were transposed earlier. */
static void turned(float *in, int64_t from, int64_t T, int64_t K, int64_t KP, float *out, int64_t PP) {
    int64_t whole = padded(T);
    memset(in + T * KP, 0, (size_t)((whole - T) * KP) * sizeof(float));
    for (int64_t t = from / 8 * 8; t < whole; t += 8)
        for (int64_t k = 0; k < K; k += 8) turn8(in + t * KP + k, KP, out + k * PP + t, PP);
}

/* Masks the scores of positions after the row's own; returns the greatest of the others. */
INLINE float masked(float *row, int64_t own, int64_t columns) {
    static const float lanes[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    int64_t j = 0;
    Vec most = all(-INFINITY);
    for (; j + W <= own + 1; j += W) most = larger(most, *(Vec *)(row + j));
    for (; j < columns; j += W) {
        Vec x = chosen(*(const Loose *)lanes > (float)(own - j), all(-INFINITY), *(Vec *)(row + j));
        *(Vec *)(row + j) = x;
        most = larger(most, x);
    }
    return greatest(most);
}

/* Replaces scores with e^(score - top); returns their sum. */
INLINE float weighed(float *row, int64_t columns, float top) {
    Vec sums = {0};
    for (int64_t j = 0; j < columns; j += W) {
        Vec e = exponential(*(Vec *)(row + j) - top);
        *(Vec *)(row + j) = e;
        sums += e;
    }
    return total(sums);
}
