// A batch cut into chunks of whole texts, and who computes them. Part of encoder.cpp.
#pragma once

#include "threads.hpp"

struct Chunk {
    int first, last;  // texts
    int begin, tokens;  // its first token, how many
};

enum Rows { ALL = 0, FIRST = 1, MEAN = 2 };  // the states of all tokens, or a row a text

struct Input {
    const int64_t *ids, *types;  // (tokens,); null if `hidden` is given
    const float* hidden;  // (tokens, hidden) embeddings ready made
    const int* lengths;  // (texts,)
    float* out;  // (tokens, hidden), or (texts, hidden)
    Rows rows;
    // where the result of a chunk goes
    float* place(const Chunk& chunk, int hidden) const { return out + size_t(rows == ALL ? chunk.begin : chunk.first) * hidden; }
};

// Part `number` of `parts` equal ones of `all`: where it begins.
inline int share_of(int all, int number, int parts) { return int(int64_t(all) * number / parts); }

// What the exports call, whatever the encoder computes in.
struct Encoding {
    virtual ~Encoding() = default;
    virtual void embeddings(const float* words, const float* places, const float* kinds, const float* gain, const float* shift) = 0;
    virtual void layer(int number, const float* const* weights, int int8) = 0;
    virtual void run(const Input& in, int texts, int threads, int chunk_tokens) = 0;
    virtual void rouse(int threads) = 0;
    virtual void forked() = 0;
};

// The way of a batch through an encoder. `Own` has `prepare(Working&, rows, longest, threads)` and
// `compute(in, chunk, working, barrier, part)`.
template <class Own, class Working> struct Runner : Encoding {
    // embeddings, float32, (vocabulary, hidden) and so on; the caller keeps them alive
    const float *words = nullptr, *places = nullptr, *kinds = nullptr;
    std::vector<float> norm0;
    std::mutex busy;
    std::vector<std::unique_ptr<Working>> working;
    Pool pool;  // its threads end before the memory above goes
    pid_t owner = getpid();

    // For the child of a fork, before it has threads: another thread of the parent may have been
    // inside. Its lock is not ours, helpers did not come along, scratch may be half made; all are
    // left where they are.
    void forked() override {
        new (&busy) std::mutex();
        new (&pool) Pool();
        new (&working) std::vector<std::unique_ptr<Working>>();
        owner = getpid();
    }

    // A run with so many threads follows soon; one that is under way has them awake.
    void rouse(int threads) override {
        if (owner != getpid() || !busy.try_lock()) return;
        std::lock_guard<std::mutex> hold(busy, std::adopt_lock);
        pool.rouse(threads);
    }

    // Of the embeddings of `size` numbers of one token the sum, to `row`.
    void embed_row(const Input& in, size_t token, int place, int size, float* row) const {
        const float* word = words + size_t(in.ids[token]) * size;
        const float* at = places + size_t(place) * size;
        const float* kind = kinds + size_t(in.types ? in.types[token] : 0) * size;
        int i = 0;
        for (; i + 16 <= size; i += 16)
            _mm512_storeu_ps(&row[i], _mm512_add_ps(_mm512_loadu_ps(word + i),
                _mm512_add_ps(_mm512_loadu_ps(kind + i), _mm512_loadu_ps(at + i))));
        for (; i < size; ++i) row[i] = word[i] + (kind[i] + at[i]);
    }

    // How long a batch waits for its threads: as long as waking takes, and some of the time that it would
    // take one thread at 500 GFLOP/s.
    std::chrono::microseconds patience(int tokens) const {
        const Shape& s = static_cast<const Own*>(this)->shape;
        const double gflop = 4e-9 * s.layers * (2. * s.hidden + s.inner) * s.hidden * tokens;
        return std::chrono::microseconds(100 + int(std::min(gflop / 500 * 1e6 / 16, 1e5)));
    }

    void run(const Input& in, int texts, int threads, int chunk_tokens) override {
        if (owner != getpid()) forked();
        std::lock_guard<std::mutex> hold(busy);
        Own& own = static_cast<Own&>(*this);
        int tokens = 0, longest = 0;
        for (int t = 0; t < texts; ++t) tokens += in.lengths[t], longest = std::max(longest, in.lengths[t]);
        // as many chunks as make equal work for all threads
        int wanted = (tokens + chunk_tokens - 1) / chunk_tokens;
        if (wanted > 1) wanted = up(wanted, threads);
        const int most = std::max(1, (tokens + wanted - 1) / wanted);
        std::vector<Chunk> chunks;
        int rows = 0;
        for (int t = 0, begin = 0; t < texts;) {
            Chunk c{t, t, begin, 0};
            // a text goes into the chunk if more than half of it fits
            while (t < texts && (c.tokens == 0 || c.tokens + in.lengths[t] / 2 < most)) c.tokens += in.lengths[t++];
            c.last = t, begin += c.tokens;
            rows = std::max(rows, c.tokens);
            chunks.push_back(c);
        }
        const bool team = int(chunks.size()) < threads;
        const int sets = team ? 1 : threads;
        while (int(working.size()) < sets) working.push_back(std::make_unique<Working>());
        for (int i = 0; i < sets; ++i) own.prepare(*working[i], rows, longest, team ? threads : 1);
        if (team) {
            Barrier together(threads);
            std::atomic<bool> counted{false};
            pool.run_open(threads, [&](int number) {
                if (number == 0) {  // who is not there by now would be waited for at every barrier
                    together.count = pool.close(threads, patience(tokens));
                    counted.store(true, std::memory_order_release);
                }
                for (int spins = 0; !counted.load(std::memory_order_acquire); ++spins) {
                    if (spins < 4000) _mm_pause();
                    else std::this_thread::yield();
                }
                for (const Chunk& chunk : chunks) own.compute(in, chunk, *working[0], together, number);
            });
            return;
        }
        std::atomic<int> next{0};
        pool.run_open(threads, [&](int number) {
            Barrier alone(1);
            for (int i; (i = next.fetch_add(1)) < int(chunks.size());)
                own.compute(in, chunks[i], *working[number], alone, 0);
        });
    }
};
