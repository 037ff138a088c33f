// The cross-entropy of a linear head and its gradients on a CPU, without the logits: nbs/engine/native_kernel.ipynb
// explains it part by part. N tokens, D numbers in a hidden state, V types. Names end in the order of their axes.
//
// A block of TOKENS tokens meets the head tile by tile. For each tile: logits, exponentials (kept), row sums, and the
// first half of the gradient of the hidden states. After the last tile the row sums are known, and the kept
// exponentials give the gradient of the head. Every thread owns a range of tiles, and so its rows of that gradient.

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <thread>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

// ---- Vectors: as wide as this processor's registers ----

#if defined(__AVX512F__)
constexpr int BYTES = 64, COLS = 4;  // 32 registers of 16 floats
#elif defined(__AVX__)
constexpr int BYTES = 32, COLS = 3;  // 16 registers of 8 floats
#else
constexpr int BYTES = 16, COLS = 3;  // SSE or NEON: 4 floats
#endif
constexpr int LANES = BYTES / 4, ROWS = 4, GROUP = COLS * LANES;
constexpr long TILE = 64, TOKENS = (64 + GROUP - 1) / GROUP * GROUP;

typedef float vec __attribute__((vector_size(BYTES)));
typedef int32_t ivec __attribute__((vector_size(BYTES)));
typedef uint32_t cell;  // one float, or two bfloat16 numbers: what one lane multiplies in one instruction

#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

inline vec load(const void *p) {
    vec x;
    std::memcpy(&x, p, BYTES);
    return x;
}
inline void store(void *p, vec x) { std::memcpy(p, &x, BYTES); }
inline vec fill(float x) { return x - vec{}; }
inline float as_float(cell c) {
    float x;
    std::memcpy(&x, &c, 4);
    return x;
}
inline cell as_cell(float x) {
    cell c;
    std::memcpy(&c, &x, 4);
    return c;
}
inline long up(long n, long to) { return (n + to - 1) / to * to; }  // n, rounded up to a multiple

// ---- Two kinds of arithmetic: PER numbers in a cell ----

struct Single {
    static constexpr int PER = 1;
    static float rounded(float x) { return x; }
    static cell pack(float a, float) { return as_cell(a); }
    static vec multiply_add(vec sum, cell a, vec b) { return sum + as_float(a) * b; }
};

#if defined(__AVX512BF16__)
struct Half {
    static constexpr int PER = 2;
    static cell bits(float x) {  // to the nearest bfloat16, ties to even; NaN stays NaN
        cell u = as_cell(x);
        return (u & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : (u + 0x7fff + (u >> 16 & 1)) >> 16;
    }
    static float rounded(float x) { return as_float(bits(x) << 16); }
    static cell pack(float a, float b) { return bits(a) | bits(b) << 16; }
    static vec multiply_add(vec sum, cell a, vec b) {
        return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(a), (__m512bh)b);
    }
};
#endif

// ---- The product: out[R rows][C vectors] += a[R][steps] . b[steps][C vectors], sums in registers ----

template <class M, int R, int C>
__attribute__((noinline)) void product(float *out, long out_row, const cell *a, long a_row, long a_step, const cell *b,
                                       long b_step, long steps) {
    vec sum[R][C];
    UNROLL for (int i = 0; i < R; i++) {
        UNROLL for (int j = 0; j < C; j++) sum[i][j] = load(out + i * out_row + j * LANES);
    }
    for (long k = 0; k < steps; k++) {
        vec x[C];
        UNROLL for (int j = 0; j < C; j++) x[j] = load(b + k * b_step + j * LANES);
        UNROLL for (int i = 0; i < R; i++) {
            UNROLL for (int j = 0; j < C; j++) {
                sum[i][j] = M::multiply_add(sum[i][j], a[i * a_row + k * a_step], x[j]);
            }
        }
    }
    UNROLL for (int i = 0; i < R; i++) {
        UNROLL for (int j = 0; j < C; j++) store(out + i * out_row + j * LANES, sum[i][j]);
    }
}

// ---- The exponential: 2^x = 2^k 2^r with k whole and |r| <= 1/2; a polynomial for 2^r, k added to the exponent ----

constexpr float LOG2E = 1.44269504f, LARGEST = 86.f;

inline vec clamp(vec x, float low, float high) {  // NaN becomes high
#if defined(__AVX512F__)
    return (vec)_mm512_min_ps(_mm512_max_ps((__m512)fill(low), (__m512)x), (__m512)fill(high));
#else
    x = x < low ? fill(low) : x;
    return x < high ? x : fill(high);
#endif
}

template <class M> inline vec exp2(vec x) {
    x = clamp(x, -126.f, LARGEST);
    const vec t = x + 12582912.f;          // 1.5 * 2^23: adding it rounds x to a whole number, in the last bits of t
    const vec r = x - (t - 12582912.f);
    vec p;                                 // the polynomials have the smallest largest relative error, and 1 at 0
    if (M::PER == 2) {                     // 3e-6, far below the rounding to 16 bits
        p = 0.00958285304f * r + 0.0559064247f;
        p = p * r + 0.240240986f;
        p = p * r + 0.693124193f;
    } else {                               // 1e-7
        p = 0.00132647271f * r + 0.00967151264f;
        p = p * r + 0.0555073374f;
        p = p * r + 0.240222421f;
        p = p * r + 0.693146978f;
    }
    p = p * r + 1.0f;
    return (vec)((ivec)p + ((ivec)t << 23));
}

// ---- Threads: all wait until the last one is there ----

struct Barrier {
    int size = 1;
    std::atomic<int> waiting{0}, round{0};
    void wait() {
        if (size == 1) return;
        const int mine = round.load();
        if (waiting.fetch_add(1) + 1 == size) {
            waiting.store(0);
            round.fetch_add(1);
            return;
        }
        for (int i = 0; round.load() == mine; i++) {
            if (i > 2000) std::this_thread::yield();
        }
    }
};

struct Job {
    long N, D, V;
    const float *h_ND, *w_VD, *b_V;
    const int64_t *y_N;
    float *nats_N;     // NaN: not computed, the loss is above 59 nats or there was a NaN
    int64_t *best_N;   // the most likely type, or null
    float *dh_ND, *dw_VD, *db_V;  // null: not needed
    int threads;
    bool keeps() const { return dw_VD || db_V; }  // the exponentials of a whole block
    bool any() const { return keeps() || dh_ND; }
};

// What a thread works with: everything is allocated before any thread starts.
template <class M> struct Workspace {
    static constexpr long P = M::PER;
    long K, Ka, Dr, Dl, t0, t1;
    cell *head, *head_pairs, *hidden, *hidden_scaled, *exps, *exp_pairs;
    float *logits, *target_logit, *tile_sum, *inverse, *target_grad, *dh_DT, *best, *best_id;
    double *sum;
    char *memory = nullptr;
    long bytes = 0;

    template <class T> void take(T *&p, long n) {
        p = (T *)(memory ? memory + bytes : nullptr);
        bytes += up(n * (long)sizeof(T), 64) + 64;  // + 64: no two begin at the same place of a page
    }
    void divide(const Job &q, int me) {
        const long tiles = up(q.V, TILE) / TILE;
        t0 = tiles * me / q.threads, t1 = tiles * (me + 1) / q.threads;  // the tiles of this thread
        K = up(q.D, P) / P;      // cells of a row of the head
        Ka = up(K, ROWS);
        Dr = up(q.D, ROWS);
        Dl = up(q.D, LANES);
        const long types = (t1 - t0) * TILE;
        bytes = 0;
        take(head, types * Ka);
        take(head_pairs, P == 1 || !q.dh_ND ? 0 : types / P * Dr);
        take(hidden, K * TOKENS);
        take(hidden_scaled, TOKENS / P * Dl);
        take(exps, !q.any() ? 0 : (q.keeps() ? types : TILE) * TOKENS / P);
        take(exp_pairs, P == 1 ? 0 : TILE / P * TOKENS);
        take(logits, TILE * GROUP);
        take(target_logit, TOKENS);
        take(tile_sum, TOKENS);
        take(inverse, TOKENS);
        take(target_grad, TOKENS);
        take(dh_DT, q.dh_ND ? Dr * TOKENS : 0);
        take(best, TOKENS);
        take(best_id, TOKENS);
        take(sum, TOKENS);
        if (P == 1) head_pairs = head;
    }
    bool allocate(const Job &q, int me) {
        divide(q, me);
        owned = std::calloc(bytes + 64, 1);
        if (!owned) return false;
        memory = (char *)up((long)(intptr_t)owned, 64);
        divide(q, me);
        return true;
    }
    void *owned = nullptr;
    ~Workspace() { std::free(owned); }
};

// The exponentials of one tile and one group of tokens: their sums, and where they are needed the numbers themselves.
template <class M> void exponentials(const Workspace<M> &s, cell *exps, long j0, bool any) {
    const float *logits = s.logits;
    float *tile_sum = s.tile_sum + j0;
    for (long j = 0; j < GROUP; j += LANES) {
        vec sum = {};
        if constexpr (M::PER == 1) {
            for (long i = 0; i < TILE; i++) {
                const vec e = exp2<M>(load(logits + i * GROUP + j));
                sum += e;
                if (any) store(exps + i * TOKENS + j0 + j, e);
            }
        }
#if defined(__AVX512BF16__)
        else {
            const __m512i mix = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7,
                                                 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
            cell *row = exps + (j0 + j) / 2, *pairs = s.exp_pairs + j0 + j;
            for (long i = 0; i < TILE; i += 2, row += TOKENS, pairs += TOKENS) {
                const vec e = exp2<M>(load(logits + i * GROUP + j)), f = exp2<M>(load(logits + (i + 1) * GROUP + j));
                sum += e + f;
                if (!any) continue;
                const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)f, (__m512)e);
                _mm256_storeu_si256((__m256i *)row, _mm512_castsi512_si256(both));  // two tokens in a cell, and
                _mm256_storeu_si256((__m256i *)(row + TOKENS / 2), _mm512_extracti64x4_epi64(both, 1));
                _mm512_storeu_si512(pairs, _mm512_permutexvar_epi16(mix, both));    // two types in a cell
            }
        }
#endif
        store(tile_sum + j, sum);
    }
}

// The most likely type so far of each token: a later one only if it is larger.
template <class M> void largest(const Workspace<M> &s, long v0, long types, long j0) {
    for (long j = 0; j < GROUP; j += LANES) {
        vec best = load(s.best + j0 + j);
        ivec id = (ivec)load(s.best_id + j0 + j);
        for (long i = 0; i < types; i++) {
            const vec x = load(s.logits + i * GROUP + j);
            const ivec more = x > best;
            best = more ? x : best;
            id = more ? ivec{} + (int32_t)(v0 + i) : id;
        }
        store(s.best + j0 + j, best);
        store(s.best_id + j0 + j, (vec)id);
    }
}

// Rows v0 ... v0 + types of the head's gradient: + exponentials . (hidden states / row sums).
template <class M>
void head_grad(const Job &q, const Workspace<M> &s, const cell *exps, long v0, long types, bool first) {
    const long k = TOKENS / M::PER;
    for (long d = 0, C; d < s.Dl; d += C * LANES) {
        const long left = (s.Dl - d) / LANES;
        C = left < COLS ? left : COLS;
        const long R = C == 1 ? 16 : C == 2 ? 8 : 4, width = q.D - d < C * LANES ? q.D - d : C * LANES;
        for (long i = 0; i < types; i += R) {
            if (d == 0) {
                for (long l = 0; l < R * k; l += 16) __builtin_prefetch(exps + (i + R) * k + l);
            }
            const long rows = types - i < R ? types - i : R;
            float *to = q.dw_VD + (v0 + i) * q.D + d, *out = to;
            long row = q.D;
            if (first) {
                for (long r = 0; r < rows; r++) std::memset(to + r * q.D, 0, 4 * width);
            }
            const bool whole = rows == R && width == C * LANES;
            if (!whole) {  // at the edges: into a buffer, and from there what exists
                out = s.logits, row = GROUP;
                std::memset(out, 0, 4 * R * GROUP);
            }
            const cell *e = exps + i * k, *h = s.hidden_scaled + d;
            if (C == 1) product<M, 16, 1>(out, row, e, k, 1, h, s.Dl, k);
            else if (C == 2) product<M, 8, 2>(out, row, e, k, 1, h, s.Dl, k);
            else if (C == 3) product<M, 4, 3>(out, row, e, k, 1, h, s.Dl, k);
            else product<M, ROWS, COLS>(out, row, e, k, 1, h, s.Dl, k);
            if (whole) continue;
            for (long r = 0; r < rows; r++) {
                for (long c = 0; c < width; c++) to[r * q.D + c] += out[r * GROUP + c];
            }
        }
    }
}

template <class M> float bias_grad(const Workspace<M> &s, const cell *exps) {
    vec sum = {};
    if constexpr (M::PER == 1) {
        for (long i = 0; i < TOKENS; i += LANES) sum += load(exps + i) * load(s.inverse + i);
    }
#if defined(__AVX512BF16__)
    else {
        for (long i = 0; i < TOKENS; i += 32) {
            const auto inverse = _mm512_cvtne2ps_pbh((__m512)load(s.inverse + i + 16), (__m512)load(s.inverse + i));
            sum = (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)load(exps + i / 2), inverse);
        }
    }
#endif
    float total = 0;
    for (int l = 0; l < LANES; l++) total += sum[l];
    return total;
}

template <class M> void work(const Job &q, Workspace<M> *all, int me, Barrier &barrier) {
    constexpr long P = M::PER;
    Workspace<M> &s = all[me];
    const long D = q.D, K = s.K, first_type = s.t0 * TILE, types = (s.t1 - s.t0) * TILE;
    const auto hidden = [&](long i, long d) { return d < D ? q.h_ND[i * D + d] * LOG2E : 0.f; };
    const auto head = [&](long v, long d) { return v < q.V && d < D ? q.w_VD[v * D + d] : 0.f; };
    const auto bias = [&](long v) { return v >= q.V ? -1e9f : q.b_V ? q.b_V[v] * LOG2E : 0.f; };

    for (long v = 0; v < types; v++) {  // the head as the products read it, in cells along D, and along V
        for (long k = 0; k < K; k++) {
            s.head[v * s.Ka + k] = M::pack(head(first_type + v, k * P), head(first_type + v, k * P + P - 1));
        }
    }
    for (long v = 0; P == 2 && q.dh_ND && v < types; v += 2) {
        for (long d = 0; d < D; d++) {
            s.head_pairs[v / 2 * s.Dr + d] = M::pack(head(first_type + v, d), head(first_type + v + 1, d));
        }
    }

    for (long n0 = 0; n0 < q.N; n0 += TOKENS) {
        const long n = q.N - n0 < TOKENS ? q.N - n0 : TOKENS;
        for (long i = 0; i < TOKENS; i++) {  // hidden states, tokens side by side; logit of the target
            const long y = i < n ? q.y_N[n0 + i] : 0;
            float z = bias(y);
            for (long k = 0; k < K; k++) {
                const float a = i < n ? hidden(n0 + i, k * P) : 0, b = P == 2 && i < n ? hidden(n0 + i, k * P + 1) : 0;
                s.hidden[k * TOKENS + i] = M::pack(a, b);
                z += M::rounded(a) * M::rounded(head(y, k * P));
                if (P == 2) z += M::rounded(b) * M::rounded(head(y, k * P + 1));
            }
            s.target_logit[i] = z;
            s.sum[i] = 0;
            s.best[i] = -INFINITY;
        }
        if (q.dh_ND) std::memset(s.dh_DT, 0, 4 * s.Dr * TOKENS);

        for (long t = s.t0; t < s.t1; t++) {
            const long v0 = t * TILE;
            const cell *w = s.head + (t - s.t0) * TILE * s.Ka;
            cell *exps = s.exps + (q.keeps() ? (t - s.t0) * TILE * TOKENS / P : 0);
            for (long j0 = 0; j0 < TOKENS; j0 += GROUP) {
                for (long i = 0; i < TILE; i++) {
                    const float b = bias(v0 + i);
                    for (long j = 0; j < GROUP; j += LANES) {
                        store(s.logits + i * GROUP + j, b - load(s.target_logit + j0 + j));
                    }
                }
                for (long i = 0; i < TILE; i += ROWS) {
                    product<M, ROWS, COLS>(s.logits + i * GROUP, GROUP, w + i * s.Ka, s.Ka, 1, s.hidden + j0, TOKENS,
                                           K);
                }
                if (q.best_N) largest<M>(s, v0, q.V - v0 < TILE ? q.V - v0 : TILE, j0);
                for (long i = 0; i < GROUP && j0 + i < n; i++) {  // the target is left out, and added exactly below
                    const uint64_t y = q.y_N[n0 + j0 + i] - v0;
                    if (y < (uint64_t)TILE) s.logits[y * GROUP + i] = -1e9f;
                }
                exponentials<M>(s, exps, j0, q.any());
            }
            for (long i = 0; i < TOKENS; i++) s.sum[i] += s.tile_sum[i];
            for (long j0 = 0; q.dh_ND && j0 < TOKENS; j0 += GROUP) {
                for (long d = 0; d < s.Dr; d += ROWS) {
                    product<M, ROWS, COLS>(s.dh_DT + d * TOKENS + j0, TOKENS,
                                           s.head_pairs + (t - s.t0) * TILE / P * s.Dr + d, 1, s.Dr,
                                           (P == 1 ? exps : s.exp_pairs) + j0, TOKENS, TILE / P);
                }
            }
        }
        barrier.wait();

        for (long i = 0; i < TOKENS; i++) {  // the target's logit was subtracted, so its own exponential is 1
            double others = 0;
            long best = 0;
            float most = -INFINITY;
            for (int t = 0; t < q.threads; t++) {
                others += all[t].sum[i];
                if (all[t].best[i] > most) most = all[t].best[i], best = as_cell(all[t].best_id[i]);
            }
            const bool fine = i < n && others < 7e25;  // 2^LARGEST is 7.7e25; NaN is not fine
            s.inverse[i] = fine ? 1 / (1 + others) : 0;
            s.target_grad[i] = fine ? -others / (1 + others) : 0;  // p - 1
            if (me || i >= n) continue;
            q.nats_N[n0 + i] = fine ? (float)std::log1p(others) : NAN;
            if (q.best_N) q.best_N[n0 + i] = best;
        }
        if (q.keeps()) {
            for (long i = 0; i < TOKENS; i += P) {
                for (long d = 0; d < D; d++) {
                    float two[2];
                    for (long c = 0; c < 2; c++) {
                        const bool there = i + c < n && s.inverse[i + c] > 0;
                        two[c] = there ? q.h_ND[(n0 + i + c) * D + d] * s.inverse[i + c] : 0;
                    }
                    s.hidden_scaled[i / P * s.Dl + d] = M::pack(two[0], two[1]);
                }
            }
            for (long t = s.t0; t < s.t1; t++) {
                const long v0 = t * TILE, rows = q.V - v0 < TILE ? q.V - v0 : TILE;
                const cell *exps = s.exps + (t - s.t0) * TILE * TOKENS / P;
                if (q.dw_VD) head_grad<M>(q, s, exps, v0, rows, n0 == 0);
                for (long v = 0; q.db_V && v < rows; v++) {
                    q.db_V[v0 + v] = (n0 ? q.db_V[v0 + v] : 0) + bias_grad<M>(s, exps + v * TOKENS / P);
                }
            }
            for (long i = 0; i < n; i++) {
                const long y = q.y_N[n0 + i];
                const float g = s.target_grad[i];
                if (y < first_type || y >= first_type + types || !(s.inverse[i] > 0)) continue;
                for (long d = 0; q.dw_VD && d < D; d++) q.dw_VD[y * D + d] += g * q.h_ND[(n0 + i) * D + d];
                if (q.db_V) q.db_V[y] += g;
            }
        }
        for (long i = n * me / q.threads; q.dh_ND && i < n * (me + 1) / q.threads; i++) {
            const float *w_D = q.w_VD + q.y_N[n0 + i] * D;
            for (long d = 0; d < D; d++) {
                float sum = 0;
                for (int t = 0; t < q.threads; t++) sum += all[t].dh_DT[d * TOKENS + i];
                q.dh_ND[(n0 + i) * D + d] = s.inverse[i] > 0 ? sum * s.inverse[i] + s.target_grad[i] * w_D[d] : 0;
            }
        }
        barrier.wait();  // nobody overwrites what another still reads
    }
}

template <class M> int run(Job &q) {
    const int most = 64;
    const long tiles = up(q.V, TILE) / TILE;
    if (q.threads > tiles) q.threads = (int)tiles;
    if (q.threads > most) q.threads = most;
    if (q.threads < 1) q.threads = 1;
    Workspace<M> all[most];
    for (int t = 0; t < q.threads; t++) {
        if (!all[t].allocate(q, t)) return 1;
    }
    Barrier barrier;
    barrier.size = q.threads;
    std::atomic<int> begin{0};  // 1: go, -1: not all threads could be started
    std::thread others[most];
    for (int t = 1; t < q.threads; t++) {
        try {
            others[t] = std::thread([&, t] {
                while (!begin.load()) std::this_thread::yield();
                if (begin.load() > 0) work<M>(q, all, t, barrier);
            });
        } catch (...) {
            begin.store(-1);
            break;
        }
    }
    if (!begin.load()) {
        begin.store(1);
        work<M>(q, all, 0, barrier);
    }
    for (int t = 1; t < q.threads; t++) {
        if (others[t].joinable()) others[t].join();
    }
    return begin.load() > 0 ? 0 : 2;
}

}  // namespace

// ---- What Python calls ----

// 0: done, 1: no memory, 2: no threads, 3: this processor has no products of that kind
extern "C" int fused_loss(int half, int threads, int64_t N, int64_t D, int64_t V, const float *h_ND, const float *w_VD,
                          const float *b_V, const int64_t *y_N, float *nats_N, int64_t *best_N, float *dh_ND,
                          float *dw_VD, float *db_V) {
    Job q{(long)N, (long)D, (long)V, h_ND, w_VD, b_V, y_N, nats_N, best_N, dh_ND, dw_VD, db_V, threads};
    if (!half) return run<Single>(q);
#if defined(__AVX512BF16__)
    return run<Half>(q);
#else
    return 3;
#endif
}

// Bits of a vector, and in the lowest bit whether there are products of bfloat16 pairs
extern "C" int kernel_kind(void) {
#if defined(__AVX512BF16__)
    return BYTES * 8 + 1;
#else
    return BYTES * 8;
#endif
}
