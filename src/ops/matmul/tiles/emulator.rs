//! Emulates tile instructions on a CPU that has none, for tests. Each of them raises a signal there, as an illegal instruction,
//! and the signal's handler does what Intel's manual (Software Developer's Manual, volume 2, chapters 3-5) specifies.
//!
//! Emulation shows that registers, shapes, addresses and the order of instructions are right. It cannot show speed.

use std::{cell::UnsafeCell, marker::PhantomData, sync::Once};

use half::bf16;
use pulp::{Simd, WithSimd};

use super::{SIDE, Shapes};
use crate::ops::matmul::{
    Operand, Pairs, Strided, Target,
    kernel::{Product, Series},
};

/// Pairs that are multiplied by tiles, whether the CPU has them or not.
pub struct Tiles;

impl Operand<f32> for Tiles {
    const PACK: usize = Pairs::PACK;

    fn dispatch<W: WithSimd>(work: W) -> W::Output {
        Pairs::dispatch(work)
    }

    fn pack(factors: &[f32]) -> f32 {
        Pairs::pack(factors)
    }

    fn sums_in_order() -> bool {
        false
    }

    fn series(series: Series, shape: [usize; 3], a: Strided<f32>, b: Strided<f32>, c: Target<f32>) {
        if !super::fit(shape, &c) {
            return Self::dispatch(Product::<f32, Self> { series, shape, a, b, c, operand: PhantomData });
        }
        install();
        // SAFETY: the CPU has the instructions, or they are emulated from here on.
        unsafe { super::series(series, shape, a, b, c) }
    }

    #[inline(always)]
    fn multiply_add<S: Simd>(simd: S, a: S::f32s, b: S::f32s, sum: S::f32s) -> S::f32s {
        Pairs::multiply_add(simd, a, b, sum)
    }

    #[inline(always)]
    unsafe fn store_along<S: Simd>(simd: S, factors: S::f32s, target: *mut f32) {
        // SAFETY: as the caller promises.
        unsafe { Pairs::store_along(simd, factors, target) }
    }

    #[inline(always)]
    unsafe fn store_across<S: Simd>(simd: S, factors: S::f32s, part: usize, target: *mut f32) {
        // SAFETY: as the caller promises.
        unsafe { Pairs::store_across(simd, factors, part, target) }
    }
}

/// Most bytes of a row of a tile register.
const ROW: usize = 64;

/// A thread's tile registers.
struct Registers {
    /// Rows and bytes per row of each register, as configured.
    shapes: [(usize, usize); 8],
    tiles: [[[u8; ROW]; SIDE]; 8],
}

thread_local! {
    static REGISTERS: UnsafeCell<Registers> = const {
        UnsafeCell::new(Registers { shapes: [(0, 0); 8], tiles: [[[0; ROW]; SIDE]; 8] })
    };
}

/// Installs the handler in this process: illegal tile instructions are emulated from now on, and other illegal instructions
/// still end the process. On a CPU with tiles, the instructions are legal once the process may use them, and are not emulated.
pub fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        super::available();
        // SAFETY: the handler has the signature that SA_SIGINFO wants.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handle as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
            assert_eq!(libc::sigaction(libc::SIGILL, &action, std::ptr::null_mut()), 0);
        }
    });
}

extern "C" fn handle(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the system passes the interrupted thread's registers; its instruction pointer is at the illegal instruction, and
    // nothing else on this thread uses its emulated tile registers while the handler runs.
    unsafe {
        let registers = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        let at = registers[libc::REG_RIP as usize] as *const u8;
        let done = REGISTERS.with(|tiles| {
            let general = |i: u8| registers[GENERAL[usize::from(i)] as usize] as usize;
            step(&mut *tiles.get(), std::slice::from_raw_parts(at, 11), general)
        });
        match done {
            Some(bytes) => registers[libc::REG_RIP as usize] += bytes as libc::greg_t,
            // The instruction is executed again, and ends the process.
            None => drop(libc::signal(libc::SIGILL, libc::SIG_DFL)),
        }
    }
}

/// The general registers in the order in which instructions number them.
const GENERAL: [libc::c_int; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// Executes the instruction at the start of `code`. Returns its length, or None where it is not a tile instruction or is an
/// illegal one.
unsafe fn step(registers: &mut Registers, code: &[u8], general: impl Fn(u8) -> usize) -> Option<usize> {
    // VEX with three bytes, opcode map 0F38, W0 and 128 bits.
    let [0xc4, extension, vex, opcode, modrm] = *code.first_chunk::<5>()? else { return None };
    if extension & 0x1f != 2 || vex & 0x84 != 0 {
        return None;
    }
    let prefix = vex & 3;
    let (mode, register, rm) = (modrm >> 6, usize::from(modrm >> 3 & 7), modrm & 7);
    if mode == 3 {
        match (opcode, prefix) {
            (0x49, 0) => registers.shapes = [(0, 0); 8],
            (0x49, 3) => registers.tiles[register] = [[0; ROW]; SIDE],
            (0x5c, 2) => multiply_add(registers, register, usize::from(rm), usize::from(!vex >> 3 & 7))?,
            _ => return None,
        }
        return Some(5);
    }
    let address = Address::decode(&code[4..], extension, general)?;
    // SAFETY: the program promises that the addresses are valid, as for the real instruction. An address on which that would
    // fault faults here, too.
    unsafe {
        match (opcode, prefix) {
            (0x49, 0) => configure(registers, &*(address.base as *const Shapes)),
            (0x4b, 2 | 3) => {
                let (rows, bytes) = registers.shapes[register];
                if rows == 0 || !address.has_index {
                    return None;
                }
                let tile = &mut registers.tiles[register];
                for (i, row) in tile.iter_mut().enumerate().take(rows) {
                    let memory = address.base.wrapping_add(address.stride.wrapping_mul(i)) as *mut u8;
                    match prefix {
                        3 => {
                            *row = [0; ROW];
                            memory.copy_to(row.as_mut_ptr(), bytes);
                        }
                        _ => row.as_ptr().copy_to(memory, bytes),
                    }
                }
                if prefix == 3 {
                    tile[rows..].fill([0; ROW]);
                }
            }
            _ => return None,
        }
    }
    Some(4 + address.bytes)
}

fn configure(registers: &mut Registers, shapes: &Shapes) {
    assert!(shapes.palette == 1 && shapes.start_row == 0 && shapes.reserved == [0; 14]);
    assert!(shapes.rows[8..] == [0; 8] && shapes.row_bytes[8..] == [0; 8]);
    for i in 0..8 {
        let (rows, bytes) = (usize::from(shapes.rows[i]), usize::from(shapes.row_bytes[i]));
        assert!(rows <= SIDE && bytes <= ROW && (rows == 0) == (bytes == 0));
        registers.shapes[i] = (rows, bytes);
    }
    registers.tiles = [[[0; ROW]; SIDE]; 8];
}

/// TDPBF16PS; None where the shapes do not fit.
fn multiply_add(registers: &mut Registers, sum: usize, a: usize, b: usize) -> Option<()> {
    let (rows, bytes) = registers.shapes[sum];
    let depth = registers.shapes[a].1 / 4;
    let distinct = sum != a && sum != b && a != b;
    if rows == 0 || !distinct || registers.shapes[a].0 != rows || registers.shapes[b] != (depth, bytes) {
        return None;
    }
    let pair = |element: &[u8]| [0, 2].map(|i| bf16::from_le_bytes([element[i], element[i + 1]]).to_f32());
    for i in 0..rows {
        for column in (0..bytes).step_by(4) {
            let mut sums = [0.0f32; 2];
            for l in 0..depth {
                let left = pair(&registers.tiles[a][i][4 * l..]);
                let right = pair(&registers.tiles[b][l][column..]);
                for part in 0..2 {
                    sums[part] = left[part].mul_add(right[part], sums[part]);
                }
            }
            let element = &mut registers.tiles[sum][i][column..column + 4];
            let before = f32::from_le_bytes(element.try_into().expect("four bytes"));
            element.copy_from_slice(&(before + (sums[0] + sums[1])).to_le_bytes());
        }
    }
    Some(())
}

/// An operand in memory.
struct Address {
    base: usize,
    /// Bytes from a row to the next.
    stride: usize,
    has_index: bool,
    /// Bytes of the instruction from its ModRM byte on.
    bytes: usize,
}

impl Address {
    fn decode(code: &[u8], extension: u8, general: impl Fn(u8) -> usize) -> Option<Self> {
        let [_, x, b] = [7, 6, 5].map(|bit| (!extension >> bit & 1) << 3);
        let (mode, rm) = (code[0] >> 6, code[0] & 7);
        let sib = code[1];
        let (base, bytes) = if rm == 4 { (sib & 7, 2) } else { (rm, 1) };
        if mode == 0 && base == 5 {
            return None;
        }
        let displacement = match mode {
            0 => 0,
            1 => i32::from(code[bytes] as i8),
            _ => i32::from_le_bytes(*code[bytes..].first_chunk()?),
        };
        let index = sib >> 3 & 7 | x;
        let has_index = rm == 4 && index != 4;
        Some(Self {
            base: general(base | b).wrapping_add_signed(displacement as isize),
            stride: if has_index { general(index) << (sib >> 6) } else { 0 },
            has_index,
            bytes: bytes + [0, 1, 4][usize::from(mode)],
        })
    }
}
