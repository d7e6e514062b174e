//! A group over MPI: `mpirun -n W qformer …`, also over several machines. `unsafe` is here; the calls stand in `mpi.c`.

use super::{Engine, OPERATION};
use crate::{Error, Kind, Result};
use std::ffi::{CStr, c_char, c_int, c_void};

unsafe extern "C" {
    fn qformer_mpi_start(rank: *mut c_int, size: *mut c_int) -> c_int;
    fn qformer_mpi_send(to: c_int, bytes: *const c_void, count: c_int) -> c_int;
    fn qformer_mpi_receive(from: c_int, bytes: *mut c_void, count: c_int) -> c_int;
    fn qformer_mpi_exchange(
        n: c_int,
        out: *const *const c_void,
        out_count: *const c_int,
        into: *const *mut c_void,
        in_count: *const c_int,
    ) -> c_int;
    fn qformer_mpi_end() -> c_int;
    fn qformer_mpi_leave(code: c_int) -> !;
    fn qformer_mpi_text(error: c_int, text: *mut c_char, room: c_int) -> c_int;
}

/// The most bytes of one message: a count is an int.
const MOST: usize = 1 << 30;

pub(super) struct Mpi(());

/// Begins MPI: this process's rank and how many there are.
pub(super) fn start() -> Result<(Mpi, usize, usize)> {
    let (mut rank, mut size) = (0, 0);
    // SAFETY: writes two ints, which live until it returns.
    check("begin MPI", unsafe { qformer_mpi_start(&raw mut rank, &raw mut size) })?;
    Ok((Mpi(()), rank.max(0) as usize, size.max(1) as usize))
}

/// Ends the process at once, whatever its other threads wait for.
pub(super) fn leave(code: u8) -> ! {
    // SAFETY: does not return, and touches no memory.
    unsafe { qformer_mpi_leave(c_int::from(code)) }
}

fn check(what: &str, error: c_int) -> Result<()> {
    if error == 0 {
        return Ok(());
    }
    let mut text: [c_char; 512] = [0; 512];
    // SAFETY: writes at most 512 bytes, the last one 0.
    let said = unsafe { qformer_mpi_text(error, text.as_mut_ptr(), 512) } == 0;
    // SAFETY: initialised above, and ends with 0 either way.
    let text = unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy();
    let text = if said { text } else { format!("MPI's error {error}").into() };
    Err(Error::new(Kind::Group, OPERATION).about(what).got(text))
}

impl Engine for Mpi {
    fn send(&mut self, to: usize, bytes: &[u8]) -> Result<()> {
        for piece in bytes.chunks(MOST) {
            // SAFETY: reads a slice that outlives the call; its length fits an int.
            let sent = unsafe { qformer_mpi_send(to as c_int, piece.as_ptr().cast(), piece.len() as c_int) };
            check("send", sent)?;
        }
        Ok(())
    }

    fn receive(&mut self, from: usize, bytes: &mut [u8]) -> Result<()> {
        for piece in bytes.chunks_mut(MOST) {
            let (to, count) = (piece.as_mut_ptr().cast(), piece.len() as c_int);
            // SAFETY: writes a slice that outlives the call; its length fits an int.
            check("receive", unsafe { qformer_mpi_receive(from as c_int, to, count) })?;
        }
        Ok(())
    }

    fn exchange(&mut self, out: &[&[u8]], into: &mut [Vec<u8>]) -> Result<()> {
        let n = out.len();
        if n != into.len() {
            return Err(Error::argument(OPERATION, "exchange", n, into.len()));
        }
        let longest = out.iter().map(|o| o.len()).chain(into.iter().map(Vec::len)).max().unwrap_or(0);
        // All ranks take as many rounds: an empty round costs nothing.
        for at in (0..longest.max(1)).step_by(MOST) {
            let range = |len: usize| at.min(len)..(at + MOST).min(len);
            let outs: Vec<&[u8]> = out.iter().map(|o| &o[range(o.len())]).collect();
            let from: Vec<*const c_void> = outs.iter().map(|o| o.as_ptr().cast()).collect();
            let from_count: Vec<c_int> = outs.iter().map(|o| o.len() as c_int).collect();
            let mut ins: Vec<&mut [u8]> = into
                .iter_mut()
                .map(|i| {
                    let range = range(i.len());
                    &mut i[range]
                })
                .collect();
            let to_count: Vec<c_int> = ins.iter().map(|i| i.len() as c_int).collect();
            let to: Vec<*mut c_void> = ins.iter_mut().map(|i| i.as_mut_ptr().cast()).collect();
            // SAFETY: arrays of n pointers to slices that are apart and outlive the call, and of their lengths, which fit ints.
            let done = unsafe {
                qformer_mpi_exchange(
                    n as c_int,
                    from.as_ptr(),
                    from_count.as_ptr(),
                    to.as_ptr(),
                    to_count.as_ptr(),
                )
            };
            check("exchange", done)?;
        }
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        // All others end, too.
        check("end MPI", unsafe { qformer_mpi_end() })
    }
}
