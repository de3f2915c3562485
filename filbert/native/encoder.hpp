// An encoder: its weights, its threads, and the way of a batch through them. Part of encoder.cpp.
#pragma once

#include "layer.hpp"
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
};


struct Encoder : Parts {
    std::vector<Layer> layers;
    // embeddings, float32, (vocabulary, hidden) and so on; the caller keeps them alive
    const float *words = nullptr, *places = nullptr, *kinds = nullptr;
    std::vector<float> norm0;
    std::mutex busy;
    std::vector<std::unique_ptr<Scratch>> scratch;
    Pool pool;  // its threads end before the memory above goes
    pid_t owner = getpid();

    Encoder(const int* given, float eps) : Parts(Shape(given, eps)), layers(shape.layers) {}

    // row: room for one row, padded with zeros.
    void embed(const Input& in, const Chunk& chunk, Scratch& s, float* row, int begin, int end) const {
        const int wide = shape.wide_hidden, size = shape.hidden;
        int text = chunk.first, place = 0;
        for (int t = 0; t < end; ++t) {
            if (t >= begin) {
                char* into = state(s, t);
                const size_t token = size_t(chunk.begin) + t;
                if (in.hidden) {
                    std::memcpy(row, in.hidden + token * size, size * 4);
                    for (int i = 0; i < wide; i += 32)
                        _mm512_store_si512(into + size_t(i / WIDE) * TILE,
                                           pack_bf16(_mm512_loadu_ps(&row[i]), _mm512_loadu_ps(&row[i + 16])));
                } else {
                    const float* word = words + size_t(in.ids[token]) * size;
                    const float* at = places + size_t(place) * size;
                    const float* kind = kinds + size_t(in.types ? in.types[token] : 0) * size;
                    int i = 0;
                    for (; i + 16 <= size; i += 16)
                        _mm512_storeu_ps(&row[i], _mm512_add_ps(_mm512_loadu_ps(word + i),
                            _mm512_add_ps(_mm512_loadu_ps(kind + i), _mm512_loadu_ps(at + i))));
                    for (; i < size; ++i) row[i] = word[i] + (kind[i] + at[i]);
                    normalise(row, norm0.data(), into, nullptr);
                }
            }
            if (++place == in.lengths[text]) ++text, place = 0;
        }
    }

    // All layers of a chunk, by `parts` threads together of which this is number `part`. Like all that
    // threads of a pool do, it asks for no memory: an exception there would end the process.
    void compute(const Input& in, const Chunk& chunk, Scratch& s, Barrier& barrier, int part) {
        const int parts = barrier.count, texts = chunk.last - chunk.first;
        int rows = chunk.tokens;
        auto share = [&](int all, int number) { return int(int64_t(all) * number / parts); };
        const Tiles tiles;
        float* row_of_mine = s.rows[part].data();
        embed(in, chunk, s, row_of_mine, share(rows, part), share(rows, part + 1));
        barrier.wait();
        char* memory = s.attention[part]->data;
        char* rest = memory + size_t(up(rows, 32) + 32) * shape.row() * 2;
        // an int8 product reads int8 tiles, which each thread makes for its rows
        auto ready = [&](const Matrix& m, const char* tiles, int wide) {
            if (!m.int8()) return;
            shrink(s, tiles, wide, share(rows, part), share(rows, part + 1));
            barrier.wait();
        };
        for (int number = 0; number < shape.layers; ++number) {
            const Layer& layer = layers[number];
            const bool last = number + 1 == shape.layers, first = last && in.rows == FIRST;
            ready(layer.qkv, s.states.data, shape.wide_hidden);
            for (int head = share(shape.heads, part); head < share(shape.heads, part + 1); ++head) {
                project(s, layer.qkv, s.states.data, rows, head, memory);
                const char* q = memory;
                for (int text = 0, row = 0; text < texts; ++text) {
                    const int length = in.lengths[chunk.first + text];
                    attend(s, rest, q, length, head, first ? text : row, first);
                    row += length, q += size_t(length) * shape.row() * 2;
                }
            }
            barrier.wait();
            if (first) {  // from here on only the first tokens count: bring their states together
                if (part == 0) {
                    int at = 0;
                    for (int t = 0; t < texts; at += in.lengths[chunk.first + t++])
                        if (at != t)
                            for (int i = 0; i < shape.wide_hidden / WIDE; ++i)
                                std::memcpy(state(s, t) + size_t(i) * TILE, state(s, at) + size_t(i) * TILE, 64);
                }
                rows = texts;
                barrier.wait();
            }
            ready(layer.out, s.context.data, shape.context);
            sum(s, layer.out, s.context.data, rows, share(layer.out.count, part), share(layer.out.count, part + 1));
            barrier.wait();
            add_and_norm(s, layer.out, layer.norm1, share(rows, part), share(rows, part + 1), nullptr);
            barrier.wait();
            ready(layer.up, s.states.data, shape.wide_hidden);
            const int from = share(layer.up.count, part), to = share(layer.up.count, part + 1);
            const auto wider = shape.activation == GELU ? &Encoder::widen<GELU>
                               : shape.activation == GELU_TANH ? &Encoder::widen<GELU_TANH> : &Encoder::widen<RELU>;
            (this->*wider)(s, layer.up, s.states.data, rows, s.inner.data, from, to);
            barrier.wait();
            ready(layer.down, s.inner.data, shape.wide_inner);
            sum(s, layer.down, s.inner.data, rows, share(layer.down.count, part), share(layer.down.count, part + 1));
            barrier.wait();
            float* plain = in.out + size_t(in.rows == ALL ? chunk.begin : chunk.first) * shape.hidden;
            if (last && in.rows == MEAN)
                average(s, layer.down, layer.norm2, in.lengths + chunk.first, share(texts, part), share(texts, part + 1), row_of_mine, plain);
            else add_and_norm(s, layer.down, layer.norm2, share(rows, part), share(rows, part + 1), last ? &plain : nullptr);
            barrier.wait();
        }
    }

    // For the child of a fork, before it has threads: another thread of the parent may have been
    // inside. Its lock is not ours, helpers did not come along, scratch may be half made; all are
    // left where they are.
    void forked() {
        new (&busy) std::mutex();
        new (&pool) Pool();
        new (&scratch) std::vector<std::unique_ptr<Scratch>>();
        owner = getpid();
    }

    void run(const Input& in, int texts, int threads, int chunk_tokens) {
        if (owner != getpid()) forked();
        std::lock_guard<std::mutex> hold(busy);
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
        while (int(scratch.size()) < sets) scratch.push_back(std::make_unique<Scratch>());
        for (int i = 0; i < sets; ++i) prepare(*scratch[i], rows, longest, team ? threads : 1);
        if (team) {
            Barrier together(threads);
            pool.run(threads, [&](int number) {
                for (const Chunk& chunk : chunks) compute(in, chunk, *scratch[0], together, number);
            });
            return;
        }
        std::atomic<int> next{0};
        pool.run(threads, [&](int number) {
            Barrier alone(1);
            for (int i; (i = next.fetch_add(1)) < int(chunks.size());)
                compute(in, chunks[i], *scratch[number], alone, 0);
        });
    }
};

std::vector<float> padded_norm(const float* gain, const float* shift, int size, int wide) {
    std::vector<float> both(2 * wide, 0.f);
    std::copy(gain, gain + size, both.begin());
    std::copy(shift, shift + size, both.begin() + wide);
    return both;
}
