// A call of the training pass: how its batch is cut, and what is kept between forward and backward.
// Part of encoder.cpp.
#pragma once

#include "threads.hpp"
#include "train_attention.hpp"

// A layer's tensors, all bfloat16, in the order in which Python hands them over.
enum Tensor {
    QUERY_W, QUERY_B, KEY_W, KEY_B, VALUE_W, VALUE_B, OUT_W, OUT_B, UP_W, UP_B, DOWN_W, DOWN_B,
    GAIN1, SHIFT1, GAIN2, SHIFT2, TENSORS
};

struct TrainShape {
    int layers, hidden, heads, head, inner, activation;
    float eps;
    TrainShape(const int* s, float eps)
        : layers(s[0]), hidden(s[1]), heads(s[2]), head(s[3]), inner(s[4]), activation(s[5]), eps(eps) {}
};

// Some whole texts. Its rows are padded to 32, those with asked tokens of the last layer too.
struct Piece {
    int first, last;    // texts
    int begin, tokens;  // first token, how many
    int row, rows;      // place and number of its rows
    int asked, asked_row, asked_rows;  // the same of the rows that the last layer is asked for
};

// What the backward pass needs of one layer. Tiles: x, x_asked, context, middle, wide; the others are
// rows. `x_asked`, `q` and all behind have a row for each query: in the last layer the asked ones.
struct Kept {
    char *x, *x_asked, *q, *kv, *context, *hat1, *middle, *wide, *hat2;
    float *sums, *inverse1, *inverse2;
};

struct Run {
    TrainShape shape;
    Memory memory;
    bool taken = false, some = false;  // some: only asked tokens of the last layer
    int texts = 0, tokens = 0, rows = 0, asked_rows = 0, results = 0;
    Dropout drop;
    std::vector<int> lengths, asked_of;  // of each text
    std::vector<Piece> pieces;
    std::vector<int> token_of, token_asked;  // of each row; 0 where it is padding
    std::vector<int> row_of;  // of each result: the asked row
    std::vector<Kept> kept;
    char* asked_out = nullptr;  // (asked rows, hidden) bfloat16

    explicit Run(const TrainShape& shape) : shape(shape) {}
    bool last(int layer) const { return layer + 1 == shape.layers; }
    bool compact(int layer) const { return some && last(layer); }

    // The pieces do not depend on the number of threads, so neither do the results.
    void plan(const int* given, int count, const int* wanted, int wanted_count, int most) {
        texts = count, some = wanted != nullptr;
        lengths.assign(given, given + count);
        asked_of.assign(count, 0);
        pieces.clear(), token_of.clear(), token_asked.clear(), row_of.clear();
        tokens = rows = asked_rows = 0;
        for (int length : lengths) tokens += length;
        std::vector<int> row_of_token;
        if (some) {
            row_of_token.assign(tokens, -1);
            for (int i = 0; i < wanted_count; ++i) row_of_token[wanted[i]] = 0;
        }
        for (int t = 0; t < texts;) {
            Piece p{t, t, pieces.empty() ? 0 : pieces.back().begin + pieces.back().tokens, 0, rows, 0, 0, asked_rows, 0};
            while (t < texts && (p.tokens == 0 || p.tokens + lengths[t] <= most)) p.tokens += lengths[t++];
            p.last = t, p.rows = up(p.tokens, 32);
            for (int i = 0; i < p.rows; ++i) token_of.push_back(i < p.tokens ? p.begin + i : 0);
            if (some) {
                int at = p.begin;
                for (int text = p.first; text < p.last; ++text)
                    for (int i = 0; i < lengths[text]; ++i, ++at)
                        if (row_of_token[at] == 0) {
                            row_of_token[at] = asked_rows + p.asked++;
                            token_asked.push_back(at), ++asked_of[text];
                        }
                p.asked_rows = up(p.asked, 32);
                token_asked.resize(size_t(asked_rows) + p.asked_rows, 0);
            }
            rows += p.rows, asked_rows += p.asked_rows;
            pieces.push_back(p);
        }
        results = some ? wanted_count : tokens;
        for (int i = 0; some && i < wanted_count; ++i) row_of.push_back(row_of_token[wanted[i]]);
        place();
    }

    // Rows of queries and keys are padded by 32 more for each piece: tiles read over a text's end.
    size_t rows_with_slack(const Piece& p, bool asked) const {
        const size_t number = size_t(&p - pieces.data());
        return (asked ? p.asked_row : p.row) + 32 * number;
    }

    void place() {
        const size_t h = shape.hidden, slack = 32 * pieces.size();
        for (int measuring = 1; measuring >= 0; --measuring) {
            size_t used = 0;
            auto take = [&](size_t bytes) {
                char* at = measuring ? nullptr : memory.data + used;
                used += (bytes + 63) / 64 * 64;
                return at;
            };
            kept.assign(shape.layers, Kept{});
            for (int i = 0; i < shape.layers; ++i) {
                Kept& k = kept[i];
                const size_t r = rows, q = compact(i) ? asked_rows : rows;
                k.x = take(r * h * 2);
                k.x_asked = compact(i) ? take(q * h * 2) : k.x;
                k.q = take((q + slack) * h * 2), k.kv = take((r + slack) * h * 4);
                k.sums = reinterpret_cast<float*>(take(q * shape.heads * 4));
                k.context = take(q * h * 2), k.hat1 = take(q * h * 2), k.middle = take(q * h * 2);
                k.wide = take(q * shape.inner * 2), k.hat2 = take(q * h * 2);
                k.inverse1 = reinterpret_cast<float*>(take(q * 4)), k.inverse2 = reinterpret_cast<float*>(take(q * 4));
            }
            asked_out = take(size_t(asked_rows) * h * 2);
            if (measuring) memory.need(used);
        }
    }

    // Calls `work(HeadRows, first row of its queries, first row of its keys)`, counted within the piece,
    // for each head of each text.
    template <class Work> void each_head(int layer, const Piece& p, Work work) const {
        const Kept& k = kept[layer];
        const bool asked = compact(layer);
        const size_t h = shape.hidden, size = shape.head;
        const size_t q_rows = asked ? p.asked_rows : p.rows;
        const char* q = k.q + rows_with_slack(p, asked) * h * 2;
        const char* kv = k.kv + rows_with_slack(p, false) * h * 4;
        float* sums = k.sums + size_t(asked ? p.asked_row : p.row) * shape.heads;
        const int* tokens = asked ? token_asked.data() + p.asked_row : token_of.data() + p.row;
        for (int head = 0; head < shape.heads; ++head) {
            int row = 0, key = 0;
            for (int text = p.first; text < p.last; ++text) {
                const int queries = asked ? asked_of[text] : lengths[text];
                work(HeadRows{q + (head * (q_rows + 32) + row) * size * 2, kv + (head * (size_t(p.rows) + 32) + key) * size * 4,
                              sums + head * q_rows + row, tokens + row, queries, lengths[text], shape.head, head, layer},
                     row, key);
                row += queries, key += lengths[text];
            }
        }
    }
};
