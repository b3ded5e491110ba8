// Sums over a batch: a binary tree over its parts, as `src/ops/parts.rs` has it. So their bits do not depend on which rank
// has which parts. In front of the sources that take such sums.

// The rows of a piece. Each part of `part` rows is cut into pieces of `piece` rows; the last one of a part may be shorter.
struct Piece {
    int begin, end;
};
DEVICE Piece piece_of(int i, int part, int piece) {
    int pieces = (part + piece - 1) / piece, first = i % pieces * piece, begin = i / pieces * part + first;
    return Piece{begin, begin + (piece < part - first ? piece : part - first)};
}

DEVICE float joined(float left, float right) { return left + right; }

// The tree's sum of what `leaf` gives for `count` numbers from `first` on, a power of two.
template <class T, class Leaf> DEVICE T tree(int first, int count, const Leaf &leaf) {
    T waiting[32];
    int depth = 0;
    for (int i = 0; i < count; i++) {
        T sum = leaf(first + i);
        // As many branches end with this leaf as its number has ones at its end.
        for (int ones = i; ones & 1; ones >>= 1) sum = joined(waiting[--depth], sum);
        waiting[depth++] = sum;
    }
    return waiting[0];
}

// The same of a number that is known when this is compiled: nothing waits in memory.
template <class T, int COUNT, class Leaf> DEVICE T tree_of(int first, const Leaf &leaf) {
    if constexpr (COUNT == 1)
        return leaf(first);
    else
        return joined(tree_of<T, COUNT / 2>(first, leaf), tree_of<T, COUNT / 2>(first + COUNT / 2, leaf));
}

// The same of any power of two, which all threads have alike.
template <class T, class Leaf> DEVICE T tree_of_any(int count, const Leaf &leaf) {
    switch (count) {
    case 1: return tree_of<T, 1>(0, leaf);
    case 2: return tree_of<T, 2>(0, leaf);
    case 4: return tree_of<T, 4>(0, leaf);
    case 8: return tree_of<T, 8>(0, leaf);
    case 16: return tree_of<T, 16>(0, leaf);
    case 32: return tree_of<T, 32>(0, leaf);
    default: return tree<T>(0, count, leaf);
    }
}

// The same for each of a block's 32 lanes that is `there`: of its 8 threads each has a branch of the tree, as far as there are
// leaves. The first has the result. All threads of the block have to call it.
template <class T, class Leaf> DEVICE T tree_of_block(int count, bool there, const Leaf &leaf, T (*shared)[32]) {
    int lane = threadIdx.x % 32, line = threadIdx.x / 32;
    int lines = count < 8 ? count : 8, each = count / lines;
    if (there && line < lines) shared[line][lane] = tree<T>(line * each, each, leaf);
    __syncthreads();
    T sum = T();
    if (there && line == 0) sum = tree<T>(0, lines, [&](int i) { return shared[i][lane]; });
    return sum;
}
