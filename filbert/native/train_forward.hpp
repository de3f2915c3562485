// The training twin of the encoder, its way forward: a piece of whole texts goes through all layers on
// one thread, as for answers, and what the way back needs is kept. Part of encoder.cpp.
#pragma once

#include "train_run.hpp"

struct TrainForward {
    TrainShape shape;
    std::mutex busy;
    pid_t owner = getpid();
    std::vector<std::unique_ptr<Run>> runs;

    struct Layer {
        Memory panels;
        char *query, *pair, *out, *up, *down;
        std::vector<float> values;  // biases and norms
        float *query_b, *pair_b, *out_b, *up_b, *down_b, *gain1, *shift1, *gain2, *shift2;
    };
    std::vector<Layer> layers;  // as the last forward pass found them
    struct Scratch {
        Memory sums, inner, attention, rows;
    };
    std::vector<std::unique_ptr<Scratch>> scratch;
    Pool pool;  // its threads end before the memory above goes

    TrainForward(const int* given, float eps) : shape(given, eps), layers(shape.layers) {}

    // A forked child has no helpers, and the parent may have been inside a call.
    void look_for_fork() {
        if (owner == getpid()) return;
        new (&busy) std::mutex();
        new (&pool) Pool();
        owner = getpid();
    }

    void prepare_call(int threads) {
        while (int(scratch.size()) < threads) scratch.push_back(std::make_unique<Scratch>());
    }

    void prepare_layer(Layer& layer, const bf16* const* w) const {
        const size_t h = shape.hidden, n = shape.inner;
        layer.panels.need((4 * h * h + 2 * h * n) * 2);
        layer.query = layer.panels.data, layer.pair = layer.query + h * h * 2, layer.out = layer.pair + 2 * h * h * 2;
        layer.up = layer.out + h * h * 2, layer.down = layer.up + h * n * 2;
        layer.values.resize(9 * h + n);
        float* at = layer.values.data();
        auto take = [&](Tensor which, size_t count) {
            for (size_t i = 0; i < count; ++i) {
                const uint32_t bits = uint32_t(w[which][i]) << 16;
                std::memcpy(at + i, &bits, 4);
            }
            return std::exchange(at, at + count);
        };
        layer.query_b = take(QUERY_B, h), layer.pair_b = take(KEY_B, h), take(VALUE_B, h);
        layer.out_b = take(OUT_B, h), layer.up_b = take(UP_B, n), layer.down_b = take(DOWN_B, h);
        layer.gain1 = take(GAIN1, h), layer.shift1 = take(SHIFT1, h);
        layer.gain2 = take(GAIN2, h), layer.shift2 = take(SHIFT2, h);
    }

    static int share(int all, int number, int parts) { return int(int64_t(all) * number / parts); }

    void pack_up(Layer& l, const bf16* const* w, int part, int parts) const {
        const int h = shape.hidden, n = shape.inner;
        auto some = [&](const bf16* weight, int inputs, int outputs, char* panels) {
            pack_forward(weight, inputs, share(outputs / 32, part, parts), share(outputs / 32, part + 1, parts), panels);
        };
        some(w[QUERY_W], h, h, l.query), some(w[KEY_W], h, h, l.pair), some(w[VALUE_W], h, h, l.pair + size_t(h) * h * 2);
        some(w[OUT_W], h, h, l.out), some(w[UP_W], h, n, l.up), some(w[DOWN_W], n, h, l.down);
    }

    // The run's number, counted from 0.
    int forward(const bf16* const* w, const bf16* hidden, const int* lengths, int texts, const int* wanted, int wanted_count,
                const Dropout& drop, bf16* out, int threads, int piece_tokens) {
        look_for_fork();
        std::lock_guard<std::mutex> hold(busy);
        prepare_call(threads);
        int id = 0;
        while (id < int(runs.size()) && runs[id]->taken) ++id;
        if (id == int(runs.size())) runs.push_back(std::make_unique<Run>(shape));
        Run& run = *runs[id];
        run.drop = drop;
        run.plan(lengths, texts, wanted, wanted_count, piece_tokens);
        int most = 0, longest = 0;
        for (const Piece& p : run.pieces) most = std::max(most, p.rows);
        for (int length : run.lengths) longest = std::max(longest, length);
        for (auto& s : scratch) {
            s->sums.need(size_t(most) * shape.hidden * 4), s->inner.need(size_t(most) * shape.inner * 2);
            s->attention.need(attention_memory(longest, longest, shape.head));
        }
        for (int i = 0; i < shape.layers; ++i) prepare_layer(layers[i], w + i * TENSORS);
        Barrier barrier(threads);
        std::atomic<int> next{0};
        pool.run(threads, [&](int part) {
            const Tiles tiles;
            for (int i = 0; i < shape.layers; ++i) pack_up(layers[i], w + i * TENSORS, part, threads);
            barrier.wait();
            for (int i; (i = next.fetch_add(1)) < int(run.pieces.size());) climb(run, run.pieces[i], hidden, out, *scratch[part]);
        });
        for (int i = 0; run.some && i < run.results; ++i)
            std::memcpy(out + size_t(i) * shape.hidden, run.asked_out + size_t(run.row_of[i]) * shape.hidden * 2, size_t(shape.hidden) * 2);
        run.taken = true;
        return id;
    }

    // A piece through all layers.
    void climb(const Run& run, const Piece& p, const bf16* hidden, bf16* out, Scratch& s) const {
        const int h = shape.hidden, steps = h / WIDE;
        const size_t tile_bytes = size_t(h) * 2;
        char* x = run.kept[0].x + p.row * tile_bytes;
        for (int r = 0; r < p.tokens; ++r)
            for (int i = 0; i < steps; ++i)
                _mm512_store_si512(tile_row(x, h, r) + size_t(i) * TILE, _mm512_loadu_si512(hidden + size_t(p.begin + r) * h + i * 32));
        zero_tile_rows(x, h, p.tokens, p.rows);
        for (int number = 0; number < shape.layers; ++number) {
            const Kept& k = run.kept[number];
            const Layer& layer = layers[number];
            const bool asked = run.compact(number);
            const int rows = asked ? p.asked_rows : p.rows, real = asked ? p.asked : p.tokens;
            const size_t row = asked ? p.asked_row : p.row;
            char* x_asked = k.x_asked + row * tile_bytes;
            if (asked) {
                for (int r = 0; r < real; ++r)
                    for (int i = 0; i < steps; ++i)
                        _mm512_store_si512(tile_row(x_asked, h, r) + size_t(i) * TILE,
                                           _mm512_load_si512(tile_row(x, h, run.token_asked[row + r] - p.begin) + size_t(i) * TILE));
                zero_tile_rows(x_asked, h, real, rows);
            }
            project(run, number, p, layer, x, x_asked);
            char* context = k.context + row * tile_bytes;
            run.each_head(number, p, [&](const HeadRows& one, int at, int) {
                attend_forward(one, run.drop, s.attention.data, context, h, at);
            });
            zero_tile_rows(context, h, real, rows);
            float* sums = reinterpret_cast<float*>(s.sums.data);
            add_up(context, rows, layer.out, steps, steps, sums, false);
            char* middle = k.middle + row * tile_bytes;
            add_and_norm(run, number, p, OF_OUTPUT, sums, x_asked, middle, nullptr);
            zero_tile_rows(middle, h, real, rows);
            char *wide = k.wide + row * shape.inner * 2, *inner = s.inner.data;
            sweep(middle, rows, layer.up, steps, shape.inner / WIDE, [&](const float* block, int r, int panel) {
                const __m512 low = _mm512_add_ps(_mm512_load_ps(block), _mm512_loadu_ps(layer.up_b + panel * 32));
                const __m512 high = _mm512_add_ps(_mm512_load_ps(block + 16), _mm512_loadu_ps(layer.up_b + panel * 32 + 16));
                const size_t at = size_t(tile_row(inner, shape.inner, r) - inner) + size_t(panel) * TILE;
                _mm512_store_si512(wide + at, pack_bf16(low, high));
                _mm512_store_si512(inner + at, pack_bf16(activate(low, shape.activation), activate(high, shape.activation)));
            });
            add_up(inner, rows, layer.down, shape.inner / WIDE, steps, sums, false);
            const bool end = run.last(number);
            x = end ? nullptr : run.kept[number + 1].x + p.row * tile_bytes;
            char* plain = reinterpret_cast<char*>(out + size_t(p.begin) * h);
            if (asked) plain = run.asked_out + row * tile_bytes;
            add_and_norm(run, number, p, OF_INNER, sums, middle, x, end ? plain : nullptr);
            if (x) zero_tile_rows(x, h, real, rows);
        }
    }

    // Queries, scaled, and keys and values, to rows of their heads.
    void project(const Run& run, int number, const Piece& p, const Layer& layer, const char* x, const char* x_asked) const {
        const Kept& k = run.kept[number];
        const bool asked = run.compact(number);
        const int h = shape.hidden, size = shape.head, rows = asked ? p.asked_rows : p.rows;
        const __m512 scale = _mm512_set1_ps(LOG2_E / std::sqrt(float(size)));
        char* q = k.q + run.rows_with_slack(p, asked) * h * 2;
        sweep(x_asked, rows, layer.query, h / WIDE, h / WIDE, [&](const float* block, int r, int panel) {
            const float* bias = layer.query_b + panel * 32;
            const __m512 low = _mm512_mul_ps(_mm512_add_ps(_mm512_load_ps(block), _mm512_loadu_ps(bias)), scale);
            const __m512 high = _mm512_mul_ps(_mm512_add_ps(_mm512_load_ps(block + 16), _mm512_loadu_ps(bias + 16)), scale);
            const int head = panel * 32 / size, at = panel * 32 % size;
            _mm512_storeu_si512(q + ((size_t(head) * (rows + 32) + r) * size + at) * 2, pack_bf16(low, high));
        });
        char* kv = k.kv + run.rows_with_slack(p, false) * h * 4;
        sweep(x, p.rows, layer.pair, h / WIDE, 2 * h / WIDE, [&](const float* block, int r, int panel) {
            const float* bias = layer.pair_b + panel * 32;
            const int column = panel * 32 % h, head = column / size, at = column % size + (panel * 32 < h ? 0 : size);
            _mm512_storeu_si512(kv + ((size_t(head) * (p.rows + 32) + r) * 2 * size + at) * 2,
                                pack_bf16(_mm512_add_ps(_mm512_load_ps(block), _mm512_loadu_ps(bias)),
                                          _mm512_add_ps(_mm512_load_ps(block + 16), _mm512_loadu_ps(bias + 16))));
        });
    }

    // Values of a product's sums, dropout, the residual, the norm. Results go to tiles and to plain
    // rows, each where given.
    void add_and_norm(const Run& run, int number, const Piece& p, Site site, float* sums, const char* residual, char* tiles,
                      char* plain) const {
        const Layer& layer = layers[number];
        const Kept& k = run.kept[number];
        const bool asked = run.compact(number), before = site == OF_OUTPUT;
        const int h = shape.hidden, real = asked ? p.asked : p.tokens;
        const size_t row = asked ? p.asked_row : p.row;
        const int* tokens = (asked ? run.token_asked : run.token_of).data() + row;
        const float* bias = before ? layer.out_b : layer.down_b;
        const unsigned dropped = run.drop.updates;
        const __m512 scale = _mm512_set1_ps(kept_scale(dropped));
        for (int r = 0; r < real; ++r) {
            float* line = sums + size_t(r) * h;
            const char* old = tile_row(residual, h, r);
            const uint32_t key = dropped ? mask_key(run.drop.seed, number, site, 0, tokens[r]) : 0;
            for (int i = 0; i < h; i += 32) {
                const __mmask32 kept = dropped ? kept32(key, i, dropped) : ~0u;
                for (int half = 0; half < 2; ++half) {
                    const int at = i + 16 * half;
                    __m512 value = _mm512_add_ps(_mm512_load_ps(line + at), _mm512_loadu_ps(bias + at));
                    if (dropped) value = _mm512_maskz_mul_ps(__mmask16(kept >> 16 * half), value, scale);
                    _mm512_store_ps(line + at, _mm512_add_ps(value, load_bf16(old + size_t(i / WIDE) * TILE + half * 32)));
                }
            }
            char* hat = (before ? k.hat1 : k.hat2) + (row + r) * size_t(h) * 2;
            (before ? k.inverse1 : k.inverse2)[row + r] =
                norm_forward(line, h, shape.eps, before ? layer.gain1 : layer.gain2, before ? layer.shift1 : layer.shift2, hat,
                             tiles ? tile_row(tiles, h, r) : nullptr, plain ? plain + size_t(r) * h * 2 : nullptr);
        }
    }
};
