// An encoder in bfloat16 and int8: its weights, and the way of a chunk through them. Part of encoder.cpp.
#pragma once

#include "layer.hpp"
#include "runner.hpp"

struct Encoder : Parts, Runner<Encoder, Scratch> {
    std::vector<Layer> layers;

    Encoder(const int* given, float eps) : Parts(Shape(given, eps)), layers(shape.layers) {}

    void embeddings(const float* w, const float* p, const float* k, const float* gain, const float* shift) override {
        words = w, places = p, kinds = k;
        norm0 = padded_norm(gain, shift, shape.hidden, shape.wide_hidden);
    }

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
                    embed_row(in, token, place, size, row);
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
        auto share = [&](int all, int number) { return share_of(all, number, parts); };
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
            add_and_norm(s, layer.out, layer.norm1, share(rows, part), share(rows, part + 1), row_of_mine, nullptr);
            barrier.wait();
            ready(layer.up, s.states.data, shape.wide_hidden);
            if (parts == 1) feed(s, layer.up, layer.down, rows);
            else {
                widen(s, layer.up, rows, share(layer.up.count, part), share(layer.up.count, part + 1), 0, layer.up.count);
                barrier.wait();
                ready(layer.down, s.inner.data, shape.wide_inner);
                sum(s, layer.down, s.inner.data, rows, share(layer.down.count, part), share(layer.down.count, part + 1));
                barrier.wait();
            }
            float* plain = in.place(chunk, shape.hidden);
            if (last && in.rows == MEAN)
                average(s, layer.down, layer.norm2, in.lengths + chunk.first, share(texts, part), share(texts, part + 1), row_of_mine, plain);
            else add_and_norm(s, layer.down, layer.norm2, share(rows, part), share(rows, part + 1), row_of_mine, last ? &plain : nullptr);
            barrier.wait();
        }
    }

    // A layer that this failed for must not be computed with.
    void layer(int number, const float* const* w, int int8) override {
        const Shape& s = shape;
        Layer& layer = layers[number];
        const Places at(s);
        any_int8 |= int8 != 0;
        layer.~Layer();  // packed before, maybe otherwise
        new (&layer) Layer();
        pack(layer.qkv, int8 & 1, s.wide_hidden, 3 * s.context, w[0], w[1], s.hidden, at.of_three(), at.same(s.hidden), at.query_scale(256.f));
        pack(layer.out, int8 & 2, s.context, s.wide_hidden, w[2], w[3], s.heads * s.head_size, at.same(s.hidden), at.of_heads(), at.one());
        pack(layer.up, int8 & 4, s.wide_hidden, s.wide_inner, w[4], w[5], s.hidden, at.same(s.inner), at.same(s.hidden), at.one());
        pack(layer.down, int8 & 8, s.wide_inner, s.wide_hidden, w[6], w[7], s.inner, at.same(s.hidden), at.same(s.inner), at.one());
        layer.norm1 = padded_norm(w[8], w[9], s.hidden, s.wide_hidden);
        layer.norm2 = padded_norm(w[10], w[11], s.hidden, s.wide_hidden);
    }
};
