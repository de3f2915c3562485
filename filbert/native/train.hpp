// The training twin of the encoder: forward and backward of a stack of layers. Part of encoder.cpp.
//
// Called from filbert/model/native_train.py; the slow twin is `BertEncoder.forward` in
// filbert/model/bert.py, and tests/numerics/test_native_train.py holds the two to each other.
//
// The way back goes layer by layer over blocks of tokens. A block has two parts: every piece brings the
// gradient down to the layer's input, and leaves the two sides of each weight's gradient; then threads
// share the panels of those gradients, whose float32 sums go on from block to block. So every sum has
// one order, whatever the number of threads.
#pragma once

#include "train_forward.hpp"

struct Trainer : TrainForward {
    using TrainForward::TrainForward;
    ~Trainer() { pool.stop(); }  // before the memory below goes

    Layer turned;  // one layer's weights for the way back
    Memory stream, stream_asked;  // gradient of the states, float32: of all rows, of the asked ones
    Memory sides, sums;  // of the products over tokens
    std::vector<float> parts;  // of each piece: sums over rows of norms and biases
    std::vector<float> biases;  // of queries, keys and values, the inner layer
    std::vector<float> totals;  // of `parts`

    struct Block {  // some pieces
        int from, to, row, rows, asked_row, asked_rows;
    };
    struct Sides {  // of a block: turned tiles, and tiles
        char *down, *middle, *out, *asked, *x, *inner, *wide, *by_query, *by_pair;
    };

    void pack_down(Layer& l, const bf16* const* w, int part, int parts) const {
        const int h = shape.hidden, n = shape.inner;
        auto some = [&](const bf16* weight, int inputs, int outputs, char* panels, int all, int first) {
            pack_backward(weight, inputs, outputs, share(inputs / 32, part, parts), share(inputs / 32, part + 1, parts), panels, all, first);
        };
        some(w[QUERY_W], h, h, l.query, h / 32, 0);
        some(w[KEY_W], h, h, l.pair, h / 16, 0), some(w[VALUE_W], h, h, l.pair, h / 16, h / 32);
        some(w[OUT_W], h, h, l.out, h / 32, 0), some(w[UP_W], h, n, l.up, n / 32, 0), some(w[DOWN_W], n, h, l.down, h / 32, 0);
    }
    // grads: the tensors of each layer, null where not asked for; nothing below layer `lowest` is.
    void backward(int id, const bf16* const* w, const bf16* given, bf16* by_hidden, bf16* const* grads, int lowest, int threads) {
        look_for_fork();
        std::lock_guard<std::mutex> hold(busy);
        prepare_call(threads);
        Run& run = *runs[id];
        const size_t h = shape.hidden, n = shape.inner;
        const int deep = shape.hidden > 512 ? 512 : 1024;  // rows whose turned side stays near
        const int limit = std::max(1024, 256 * threads);
        std::vector<Block> blocks;
        size_t rows = 0, most = 0;
        int longest = 0;
        for (int i = 0; i < int(run.pieces.size()); ++i) {
            const Piece& p = run.pieces[i];
            if (blocks.empty() || blocks.back().rows + p.rows > limit) blocks.push_back({i, i, p.row, 0, p.asked_row, 0});
            Block& b = blocks.back();
            b.to = i + 1, b.rows += p.rows, b.asked_rows += p.asked_rows;
            rows = std::max(rows, size_t(b.rows)), most = std::max(most, size_t(p.rows));
        }
        for (int length : run.lengths) longest = std::max(longest, length);
        for (auto& s : scratch) {
            s->inner.need(most * h * 2), s->rows.need((most + 32) * h * 2 + 4096);
            s->attention.need(attention_memory(longest, longest, shape.head));
        }
        stream.need(run.rows * h * 4), stream_asked.need(size_t(run.asked_rows) * h * 4);
        sides.need(rows * (8 * h + 2 * n) * 2);
        sums.need((4 * h * h + 2 * h * n) * 4);
        parts.resize(run.pieces.size() * 6 * h), biases.resize(3 * h + n), totals.resize(6 * h);
        prepare_layer(turned, w);  // takes its memory: nothing may throw once threads run
        Barrier barrier(threads);
        std::vector<std::atomic<int>> next(size_t(shape.layers) * blocks.size());
        pool.run(threads, [&](int part) {
            const Tiles tiles;
            begin(run, given, part, threads);
            for (int number = shape.layers - 1; number >= lowest; --number) {
                const bf16* const* own = w + number * TENSORS;
                bf16* const* into = grads + number * TENSORS;
                barrier.wait();
                if (part == 0) prepare_layer(turned, own), std::fill(parts.begin(), parts.end(), 0.f);
                barrier.wait();
                pack_down(turned, own, part, threads);
                barrier.wait();
                for (const Block& block : blocks) {
                    const bool first = &block == &blocks.front(), last = &block == &blocks.back();
                    const Sides side = sides_of(block, run.compact(number));
                    std::atomic<int>& taken = next[number * blocks.size() + size_t(&block - blocks.data())];
                    for (int i; (i = block.from + taken.fetch_add(1)) < block.to;) fall(run, number, block, side, run.pieces[i], *scratch[part]);
                    barrier.wait();
                    weigh(run, number, block, side, into, deep, first, last, part, threads);
                    barrier.wait();
                }
                if (part == 0) finish(run, into);
            }
            barrier.wait();
            if (by_hidden)
                for (const Piece& p : run.pieces)
                    for (int r = share(p.tokens, part, threads); r < share(p.tokens, part + 1, threads); ++r) {
                        const float* from = reinterpret_cast<const float*>(stream.data) + (size_t(p.row) + r) * h;
                        bf16* to = by_hidden + (size_t(p.begin) + r) * h;
                        for (size_t i = 0; i < h; i += 32)
                            _mm512_storeu_si512(to + i, pack_bf16(_mm512_load_ps(from + i), _mm512_load_ps(from + i + 16)));
                    }
        });
    }

    void release(int id) {
        look_for_fork();
        std::lock_guard<std::mutex> hold(busy);
        runs[id]->taken = false;
    }

private:
    float* line(Memory& memory, int row) const { return reinterpret_cast<float*>(memory.data) + size_t(row) * shape.hidden; }

    Sides sides_of(const Block& b, bool asked) const {
        const size_t h = shape.hidden, q = asked ? b.asked_rows : b.rows;
        char* at = sides.data;
        auto take = [&](size_t rows, size_t wide) { return std::exchange(at, at + rows * wide * 2); };
        Sides s;
        s.down = take(q, h), s.middle = take(q, h), s.out = take(q, h), s.x = take(b.rows, h);
        s.asked = asked ? take(q, h) : s.x;
        s.inner = take(q, shape.inner), s.wide = take(q, shape.inner);
        s.by_query = take(q, h), s.by_pair = take(b.rows, 2 * h);
        return s;
    }

    // The given gradient as float32 rows; a token that was asked for twice gets the sum.
    void begin(const Run& run, const bf16* given, int part, int threads) {
        const int h = shape.hidden;
        if (!run.some) {
            for (const Piece& p : run.pieces)
                for (int r = share(p.tokens, part, threads); r < share(p.tokens, part + 1, threads); ++r)
                    for (int i = 0; i < h; i += 16)
                        _mm512_store_ps(line(stream, p.row + r) + i, load_bf16(given + size_t(p.begin + r) * h + i));
            return;
        }
        if (part) return;
        std::memset(stream_asked.data, 0, size_t(run.asked_rows) * h * 4);
        for (int i = 0; i < run.results; ++i) {
            float* to = line(stream_asked, run.row_of[i]);
            for (int j = 0; j < h; j += 16)
                _mm512_store_ps(to + j, _mm512_add_ps(_mm512_load_ps(to + j), load_bf16(given + size_t(i) * h + j)));
        }
    }

    // A piece's gradient from a layer's result to its input.
    void fall(const Run& run, int number, const Block& b, const Sides& side, const Piece& p, Scratch& s) {
        const bool asked = run.compact(number);
        const int h = shape.hidden, n = shape.inner, steps = h / WIDE;
        const int rows = asked ? p.asked_rows : p.rows, real = asked ? p.asked : p.tokens;
        const int row = asked ? p.asked_row : p.row;
        const int at = row - (asked ? b.asked_row : b.row), at_key = p.row - b.row;  // in the block
        const int all = (asked ? b.asked_rows : b.rows) / 32;
        const Kept& k = run.kept[number];
        const size_t bytes = size_t(h) * 2;
        Memory& flow = asked ? stream_asked : stream;
        float* grads = line(flow, row);
        float* sum = &parts[size_t(&p - run.pieces.data()) * 6 * h];
        const int* tokens = (asked ? run.token_asked : run.token_of).data() + row;
        char* tiles = s.inner.data;  // the gradient that a product is handed
        auto norm = [&](Site site, const char* hat, const float* inverse, const float* gain, float* into) {
            const unsigned dropped = run.drop.updates;
            for (int r = 0; r < real; ++r)
                norm_backward(grads + size_t(r) * h, h, hat + (row + r) * bytes, inverse[row + r], gain,
                              dropped ? mask_key(run.drop.seed, number, site, 0, tokens[r]) : 0, dropped,
                              tile_row(tiles, h, r), into, into + h, into + 2 * h);
            zero_tile_rows(tiles, h, real, rows);
            for (int r = real; r < rows; ++r) std::memset(grads + size_t(r) * h, 0, size_t(h) * 4);
        };
        norm(OF_INNER, k.hat2, k.inverse2, turned.gain2, sum);
        turn_tiles(tiles, h, rows, side.down, all, at / 32);
        char *inner = side.inner + size_t(at) * n * 2, *wide = side.wide + size_t(at) * n * 2;
        const char* before = k.wide + size_t(row) * n * 2;
        sweep(tiles, rows, turned.down, steps, n / WIDE, [&](const float* block, int r, int panel) {
            const size_t place = size_t(tile_row(inner, n, r) - inner) + size_t(panel) * TILE;
            __m512 value1, value2, slope1, slope2;
            activate_both(load_bf16(before + place), shape.activation, value1, slope1);
            activate_both(load_bf16(before + place + 32), shape.activation, value2, slope2);
            _mm512_store_si512(inner + place, pack_bf16(value1, value2));
            _mm512_store_si512(wide + place, pack_bf16(_mm512_mul_ps(_mm512_load_ps(block), slope1),
                                                       _mm512_mul_ps(_mm512_load_ps(block + 16), slope2)));
        });
        add_up(wide, rows, turned.up, n / WIDE, steps, grads, true);  // the residual's stands there
        turn_tiles(k.middle + row * bytes, h, rows, side.middle, all, at / 32);
        norm(OF_OUTPUT, k.hat1, k.inverse1, turned.gain1, sum + 3 * h);
        turn_tiles(tiles, h, rows, side.out, all, at / 32);
        char* context_grads = s.rows.data;  // rows of each head
        const int size = shape.head;
        sweep(tiles, rows, turned.out, steps, steps, [&](const float* block, int r, int panel) {
            const int head = panel * 32 / size, column = panel * 32 % size;
            _mm512_storeu_si512(context_grads + ((size_t(head) * rows + r) * size + column) * 2,
                                pack_bf16(_mm512_load_ps(block), _mm512_load_ps(block + 16)));
        });
        char *by_query = side.by_query + at * bytes, *by_pair = side.by_pair + at_key * 2 * bytes;
        run.each_head(number, p, [&](const HeadRows& one, int q_row, int key_row) {
            attend_backward(one, run.drop, s.attention.data, context_grads + (size_t(one.head) * rows + q_row) * size * 2, h, q_row,
                            by_query, by_pair, key_row);
        });
        zero_tile_rows(by_query, h, real, rows);
        zero_tile_rows(by_pair, 2 * h, p.tokens, p.rows);
        turn_tiles(k.x + p.row * bytes, h, p.rows, side.x, b.rows / 32, at_key / 32);
        add_up(by_query, rows, turned.query, steps, steps, grads, true);
        float* below = line(stream, p.row);
        if (asked) {
            turn_tiles(k.x_asked + row * bytes, h, rows, side.asked, all, at / 32);
            std::memset(below, 0, size_t(p.rows) * h * 4);
            for (int r = 0; r < real; ++r)
                std::memcpy(below + size_t(tokens[r] - p.begin) * h, grads + size_t(r) * h, size_t(h) * 4);
        }
        add_up(by_pair, p.rows, turned.pair, 2 * steps, steps, below, true);
    }

    // This thread's panels of the gradients of a layer's weights, one block of tokens more.
    void weigh(const Run& run, int number, const Block& b, const Sides& side, bf16* const* grads, int deep, bool first, bool last,
               int part, int threads) {
        const bool asked = run.compact(number);
        const int h = shape.hidden, n = shape.inner, rows = asked ? b.asked_rows : b.rows, across = h / WIDE;
        float* at = reinterpret_cast<float*>(sums.data);
        auto take = [&](size_t wide) { return std::exchange(at, at + wide * h); };
        const char* context = run.kept[number].context + size_t(asked ? b.asked_row : b.row) * h * 2;
        struct Task {
            Outer outer;
            bool swap;
            int weight, inputs;
        };
        const Task tasks[5] = {
            {{side.down, side.inner, rows, n, across, take(n), nullptr}, false, DOWN_W, n},
            {{side.middle, side.wide, rows, n, across, take(n), biases.data() + 3 * h}, true, UP_W, h},
            {{side.out, context, rows, h, across, take(h), nullptr}, false, OUT_W, h},
            {{side.asked, side.by_query, rows, h, across, take(h), biases.data()}, true, QUERY_W, h},
            {{side.x, side.by_pair, b.rows, 2 * h, across, take(2 * h), biases.data() + h}, true, KEY_W, h},
        };
        alignas(64) char memory[1024 * 64];
        int before = 0;
        const int all = (2 * n + 4 * h) / WIDE, from = share(all, part, threads), to = share(all, part + 1, threads);
        for (const Task& task : tasks) {
            const int count = task.outer.panels();
            for (int i = std::max(from - before, 0); i < std::min(to - before, count); ++i) {
                const int second = task.weight == KEY_W && i >= across ? 2 : 0;  // a value's panel
                bf16* into = grads[task.weight + second];
                Outer outer = task.outer;
                if (!into) outer.turned = nullptr;
                if (into || outer.bias) outer_panel(outer, i, deep, first, memory);
                // panels of values store as those of a matrix of their own
                if (last && into) outer_store(outer, i, task.swap, into - (second ? size_t(h) * h : 0), task.inputs);
            }
            before += count;
        }
    }

    // Gradients of biases and norms.
    void finish(const Run& run, bf16* const* grads) {
        const size_t h = shape.hidden, n = shape.inner;
        constexpr Tensor of_parts[6] = {GAIN2, SHIFT2, DOWN_B, GAIN1, SHIFT1, OUT_B};
        std::fill(totals.begin(), totals.end(), 0.f);
        for (size_t piece = 0; piece < run.pieces.size(); ++piece)
            for (size_t i = 0; i < 6 * h; ++i) totals[i] += parts[piece * 6 * h + i];
        auto store = [](const float* from, size_t count, bf16* into) {
            for (size_t i = 0; into && i < count; ++i) into[i] = to_bf16(from[i]);
        };
        for (int i = 0; i < 6; ++i) store(totals.data() + i * h, h, grads[of_parts[i]]);
        store(biases.data(), h, grads[QUERY_B]), store(biases.data() + h, h, grads[KEY_B]);
        store(biases.data() + 2 * h, h, grads[VALUE_B]), store(biases.data() + 3 * h, n, grads[UP_B]);
    }
};
