// MaxSim: queries in panels (a lane a token), a document in strips, maxima in registers.
//
// A task is one chunk of queries with one document, whose strips it packs for itself.
#pragma once

constexpr int64_t chunk_tokens = 512;

// The tokens that a mask keeps, one after another.
template <class Acc>
struct Kept {
  int64_t* begin = nullptr;         // (count + 1)
  int32_t* token = nullptr;         // which of its query or document
  RowScale<Acc>* scale = nullptr;   // (count, length), of those that are kept
};

template <class E, class P>
class TokenKernel {
  using Acc = typename P::Acc;
  using Unit = typename P::Unit;
  static constexpr int64_t panel = micro_columns<Acc>;

  // What `row_scale` reads.
  struct Scaled {
    using Acc = typename P::Acc;
    using Elem = E;
    static constexpr bool pairs = P::pack == 2;
    const TokenProblem<Acc>& p;
  };

 public:
  TokenKernel(const TokenProblem<Acc>& problem, int workers)
      : p(problem), workers_(workers), depth_(divide_up(p.dim, P::pack)) {
    const int64_t length = maximum<int64_t>(1, p.queries.length);
    chunk_ = minimum(p.queries.count, maximum<int64_t>(1, chunk_tokens / length));
    chunk_panels_ = divide_up(chunk_ * length, panel);
    const int64_t chunks = divide_up(p.queries.count, chunk_);
    const int64_t bytes = chunk_panels_ * panel * depth_ * int64_t(sizeof(Unit));
    wave_ = clamp<int64_t>(p.workspace_bytes / 2 / bytes, 1, chunks);
  }

  void layout(Cursor& cursor) {
    take(cursor, p.queries, queries_);
    take(cursor, p.documents, documents_);
    const int64_t w = workers_, length = p.documents.length;
    if (p.grad) {
      const int64_t most = maximum(p.documents.length, p.queries.length);
      sums_ = cursor.take<Acc>(std::is_same_v<E, Acc> ? 0 : w * most * p.dim);
      return;
    }
    panels_ = cursor.take<Unit>(wave_ * chunk_units());
    // A vector of slack: see pack_strip.
    strips_ = cursor.take<Unit>(w * strip_units());
    post_ = cursor.take<Acc>(w * round_up(length, micro_rows));
    best_ = cursor.take<Acc>(w * chunk_panels_ * panel);
    maxima_ = cursor.take<Maxima<Acc>>(w);
  }

  void run() {
    keep(p.queries, queries_);
    keep(p.documents, documents_);
    if (p.grad) {
      if (p.queries.grad) pull_queries();
      if (p.documents.grad) pull_documents();
      return;
    }
    const int64_t chunks = divide_up(p.queries.count, chunk_);
    for (int64_t first = 0; first < chunks; first += wave_) {
      const int64_t count = minimum(wave_, chunks - first);
      parallel_for(count, workers_, [&](int64_t c, int) { pack_chunk(first + c, c); });
      parallel_for(count * p.documents.count, workers_, [&](int64_t task, int worker) {
        const int64_t c = task / p.documents.count;
        score(first + c, c, task % p.documents.count, worker);
      });
    }
  }

 private:
  const TokenProblem<Acc>& p;
  const int workers_;
  const int64_t depth_;
  int64_t chunk_ = 0, chunk_panels_ = 0, wave_ = 0;
  Kept<Acc> queries_, documents_;
  Unit *panels_, *strips_;
  Acc *post_, *best_, *sums_;
  Maxima<Acc>* maxima_;

  int64_t chunk_units() const { return chunk_panels_ * panel * depth_; }
  int64_t strip_units() const {
    return round_up(p.documents.length, micro_rows) * depth_ + micro_rows + 2 * lanes<Unit>;
  }
  static const E* row(const Tokens& t, int64_t item, int64_t token) {
    return static_cast<const E*>(t.data) + item * t.stride + token * t.token_stride;
  }
  static void take(Cursor& cursor, const Tokens& t, Kept<Acc>& kept) {
    kept.begin = cursor.take<int64_t>(t.count + 1);
    kept.token = cursor.take<int32_t>(t.count * t.length);
    kept.scale = cursor.take<RowScale<Acc>>(t.count * t.length);
  }

  void keep(const Tokens& t, Kept<Acc>& kept) const {
    int64_t count = 0;
    for (int64_t item = 0; item < t.count; ++item) {
      kept.begin[item] = count;
      for (int64_t i = 0; i < t.length; ++i) {
        if (!t.mask || t.mask[item * t.length + i]) kept.token[count++] = int32_t(i);
      }
    }
    kept.begin[t.count] = count;
    const Scaled scaled{p};
    parallel_for(t.count, workers_, [&](int64_t item, int) {
      for (int64_t at = kept.begin[item]; at < kept.begin[item + 1]; ++at) {
        const int64_t i = kept.token[at];
        kept.scale[item * t.length + i] = row_scale(scaled, row(t, item, i));
      }
    });
  }

  // ---- forward

  // The queries of a chunk lie one after another, whichever panels they share.
  void pack_chunk(int64_t chunk, int64_t slot) const {
    const int64_t first = chunk * chunk_, last = minimum(p.queries.count, first + chunk_);
    const int64_t begin = queries_.begin[first], end = queries_.begin[last];
    int64_t item = first;
    for (int64_t at = begin; at < end; at += panel) {
      const int64_t count = minimum(panel, end - at);
      while (queries_.begin[item + 1] <= at) ++item;
      PackedRow<E, Acc> rows[micro_columns<Acc>];
      int64_t owner = item;
      for (int64_t i = 0; i < count; ++i) {
        while (queries_.begin[owner + 1] <= at + i) ++owner;
        const int64_t token = queries_.token[at + i];
        rows[i] = {row(p.queries, owner, token), query_scale(owner, token).element};
      }
      Unit* out = panels_ + slot * chunk_units() + (at - begin) * depth_;
      pack_transposed<P>([&](int64_t r) { return rows[r]; }, count, p.dim, out,
                         panel_width<Acc>(count));
    }
  }

  void score(int64_t chunk, int64_t slot, int64_t document, int worker) const {
    const int64_t first = chunk * chunk_, last = minimum(p.queries.count, first + chunk_);
    const int64_t begin = queries_.begin[first], end = queries_.begin[last];
    const int64_t keys = documents_.begin[document];
    const int64_t count = documents_.begin[document + 1] - keys;
    Unit* strips = strips_ + worker * strip_units();
    Acc* post = post_ + worker * round_up(p.documents.length, micro_rows);
    Acc* best = best_ + worker * chunk_panels_ * panel;
    pack_document(document, strips, post);
    for (int64_t item = first; item < last; ++item) none(item, document);
    if (count == 0) return;
    Maxima<Acc>& found = maxima_[worker];
    int64_t item = first;
    for (int64_t at = begin; at < end; at += panel) {
      const int64_t columns = minimum(panel, end - at);
      panel_maxima<P>(strips, panels_ + slot * chunk_units() + (at - begin) * depth_, count, depth_,
                      post, panel_width<Acc>(columns), found);
      for (int64_t c = 0; c < columns; ++c) {
        while (queries_.begin[item + 1] <= at + c) ++item;
        const int64_t token = queries_.token[at + c];
        best[at + c - begin] = found.value[c] * query_scale(item, token).post;
        place(item, document)[token] = documents_.token[keys + found.row[c]];
      }
    }
    for (item = first; item < last; ++item) {
      double sum = 0;
      for (int64_t at = queries_.begin[item]; at < queries_.begin[item + 1]; ++at) {
        sum += double(best[at - begin]);
      }
      p.scores[item * p.documents.count + document] = Acc(sum * weight(item));
    }
  }

  // As if there were no tokens; those that are there follow.
  void none(int64_t item, int64_t document) const {
    p.scores[item * p.documents.count + document] = 0;
    int32_t* at = place(item, document);
    for (int64_t i = 0; i < p.queries.length; ++i) at[i] = -1;
  }

  void pack_document(int64_t document, Unit* strips, Acc* post) const {
    const int64_t begin = documents_.begin[document], end = documents_.begin[document + 1];
    for (int64_t at = begin; at < end; at += micro_rows) {
      const auto get = [&](int64_t r) {
        const int64_t token = documents_.token[at + r];
        return packed_row(row(p.documents, document, token),
                          document_scale(document, token).element);
      };
      const int64_t count = minimum<int64_t>(micro_rows, end - at);
      pack_strip<P>(get, count, p.dim, strips + (at - begin) * depth_);
      for (int64_t r = 0; r < count; ++r) {
        post[at - begin + r] = document_scale(document, documents_.token[at + r]).post;
      }
    }
  }

  int32_t* place(int64_t query, int64_t document) const {
    return p.where + (query * p.documents.count + document) * p.queries.length;
  }
  double weight(int64_t query) const {
    const int64_t count = queries_.begin[query + 1] - queries_.begin[query];
    return p.mean && count ? 1 / double(count) : 1;
  }
  const RowScale<Acc>& query_scale(int64_t query, int64_t token) const {
    return queries_.scale[query * p.queries.length + token];
  }
  const RowScale<Acc>& document_scale(int64_t document, int64_t token) const {
    return documents_.scale[document * p.documents.length + token];
  }

  // ---- backward

  // A query's token gets the tokens at its maxima, document after document.
  void pull_queries() const {
    parallel_for(p.queries.count, workers_, [&](int64_t query, int worker) {
      Acc* sums = cleared(p.queries, query, worker);
      for (int64_t document = 0; document < p.documents.count; ++document) {
        const Acc g = pull(query, document);
        pairs(query, document, [&](int64_t i, int64_t j) {
          add_row(sums + i * p.dim, g * document_scale(document, j).unit(),
                  row(p.documents, document, j));
        });
      }
      finish(p.queries, queries_, query, sums);
    });
  }

  // A document's token gets the tokens whose maximum it was, query after query.
  void pull_documents() const {
    parallel_for(p.documents.count, workers_, [&](int64_t document, int worker) {
      Acc* sums = cleared(p.documents, document, worker);
      for (int64_t query = 0; query < p.queries.count; ++query) {
        const Acc g = pull(query, document);
        pairs(query, document, [&](int64_t i, int64_t j) {
          add_row(sums + j * p.dim, g * query_scale(query, i).unit(), row(p.queries, query, i));
        });
      }
      finish(p.documents, documents_, document, sums);
    });
  }

  Acc pull(int64_t query, int64_t document) const {
    return Acc(double(p.grad[query * p.documents.count + document]) * weight(query));
  }

  // f(a token of the query, the document's token at its maximum)
  template <class F>
  void pairs(int64_t query, int64_t document, F&& f) const {
    const int32_t* at = place(query, document);
    for (int64_t i = 0; i < p.queries.length; ++i) {
      if (at[i] >= 0) f(i, int64_t(at[i]));
    }
  }

  Acc* cleared(const Tokens& t, int64_t item, int worker) const {
    const int64_t size = t.length * p.dim;
    Acc* sums;
    if constexpr (std::is_same_v<E, Acc>) {
      sums = static_cast<Acc*>(t.grad) + item * size;
    } else {
      sums = sums_ + worker * maximum(p.documents.length, p.queries.length) * p.dim;
    }
    __builtin_memset(sums, 0, size_t(size) * sizeof(Acc));
    return sums;
  }

  void add_row(Acc* sum, Acc c, const E* from) const {
    for_each_vector<Acc>(p.dim, [&](int64_t k, auto count) {
      const Vec<Acc> v = load_first<Acc>(from + k, count);
      store_first<Acc>(sum + k, load_first<Acc>(sum + k, count) + c * v, count);
    });
  }

  // From gradients of unit rows to those of the rows: what points along a row drops out.
  void finish(const Tokens& t, const Kept<Acc>& kept, int64_t item, Acc* sums) const {
    E* out = static_cast<E*>(t.grad) + item * t.length * p.dim;
    int64_t at = kept.begin[item];
    for (int64_t i = 0; i < t.length; ++i) {
      Acc* sum = sums + i * p.dim;
      Acc factor = 1, along = 0;
      const E* x = row(t, item, i);
      const bool there = at < kept.begin[item + 1] && kept.token[at] == i;
      if (there && p.normalize) {
        factor = kept.scale[item * t.length + i].unit();
        const double dot = sum_vectors<Acc>(p.dim, [&](int64_t k, auto count) {
          return (load_first<Acc>(x + k, count) * factor) * load_first<Acc>(sum + k, count);
        });
        along = Acc(dot) * factor;
      }
      at += there;
      if (std::is_same_v<E, Acc> && (!there || !p.normalize)) continue;
      for_each_vector<Acc>(p.dim, [&](int64_t k, auto count) {
        Vec<Acc> v = load_first<Acc>(sum + k, count);
        if (there && p.normalize) v = (v - along * load_first<Acc>(x + k, count)) * factor;
        store_first<Acc>(out + i * p.dim + k, v, count);
      });
    }
  }
};

template <class E, class P>
void token_similarity_as(const TokenProblem<typename P::Acc>& problem) {
  const double pairs = double(problem.queries.count * problem.queries.length) *
                       double(problem.documents.count * problem.documents.length);
  TokenKernel<E, P> kernel(problem, pairs * double(problem.dim) < 1e6 ? 1 : available_workers());
  Cursor measured(nullptr);
  kernel.layout(measured);
  const Arena arena(measured.used());
  Cursor cursor(arena.data());
  kernel.layout(cursor);
  kernel.run();
}

#if !ISA_BF16
inline void token_similarity_of(const TokenProblem<float>& problem) {
  switch (problem.dtype) {
    case DType::bfloat16: return token_similarity_as<Bf16, Plain<float>>(problem);
    case DType::float16: return token_similarity_as<Half, Plain<float>>(problem);
    default: return token_similarity_as<float, Plain<float>>(problem);
  }
}
#endif
