// Sums over a batch: a binary tree over its parts, as in `src/ops/parts.rs`. So the bits of a sum do not depend on which rank has
// which parts. This file is prepended to the sources that compute such sums.

// The rows of a piece. Each part of `part` rows is cut into pieces of `piece` rows; the last one of a part may be shorter.
struct Piece {
    int begin, end;
};
DEVICE Piece piece_of(int i, int part, int piece) {
    int pieces = (part + piece - 1) / piece, first = i % pieces * piece, begin = i / pieces * part + first;
    return Piece{begin, begin + (piece < part - first ? piece : part - first)};
}

DEVICE float joined(float left, float right) { return left + right; }

// Sums the results of `leaf` for `count` numbers from `first` on, in a binary tree. `count` is a power of two.
template <class T, class Leaf> DEVICE T tree(int first, int count, const Leaf &leaf) {
    T waiting[32];
    int depth = 0;
    for (int i = 0; i < count; i++) {
        T sum = leaf(first + i);
        // The leaf completes one branch for each trailing one bit of its number.
        for (int ones = i; ones & 1; ones >>= 1) sum = joined(waiting[--depth], sum);
        waiting[depth++] = sum;
    }
    return waiting[0];
}

// The same for a count that is known at compile time: no partial sums are stored in memory.
template <class T, int COUNT, class Leaf> DEVICE T tree_of(int first, const Leaf &leaf) {
    if constexpr (COUNT == 1)
        return leaf(first);
    else
        return joined(tree_of<T, COUNT / 2>(first, leaf), tree_of<T, COUNT / 2>(first + COUNT / 2, leaf));
}

// The same for any power of two, which must be equal in all threads.
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

// The same for each of a block's 32 lanes that is `there`. Each of the lane's 8 threads sums one branch of the tree; with fewer
// leaves, fewer threads do. The first of them returns the result. All threads of the block must call it.
template <class T, class Leaf> DEVICE T tree_of_block(int count, bool there, const Leaf &leaf, T (*shared)[32]) {
    int lane = threadIdx.x % 32, line = threadIdx.x / 32;
    int lines = count < 8 ? count : 8, each = count / lines;
    if (there && line < lines) shared[line][lane] = tree<T>(line * each, each, leaf);
    __syncthreads();
    T sum = T();
    if (there && line == 0) sum = tree<T>(0, lines, [&](int i) { return shared[i][lane]; });
    return sum;
}
