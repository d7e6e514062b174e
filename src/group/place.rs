//! Which of how many processes this one is, as whoever started it says in the environment: torchrun and its like by `RANK`,
//! `WORLD_SIZE` and `LOCAL_RANK`, mpirun by OpenMPI's names, srun by Slurm's. The first of these sets that is there counts, and must be
//! whole.

use super::OPERATION;
use crate::{Error, Result};

/// A process's place among others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// From 0.
    pub rank: usize,
    /// How many there are.
    pub size: usize,
    /// Its number among those of its machine.
    pub local: usize,
}

const SETS: [[&str; 3]; 3] = [
    ["RANK", "WORLD_SIZE", "LOCAL_RANK"],
    ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"],
    ["SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"],
];

impl Place {
    /// Of one process alone.
    pub const ALONE: Place = Place { rank: 0, size: 1, local: 0 };

    /// As the environment says; `None` if it says nothing. `slurm`: whether Slurm's names count: they are also those of the script of a
    /// job, which starts one process.
    pub fn of(var: impl Fn(&str) -> Option<String>, slurm: bool) -> Result<Option<Place>> {
        for names in SETS.iter().take(if slurm { 3 } else { 2 }) {
            let found = names.map(&var);
            if found.iter().all(Option::is_none) {
                continue;
            }
            let mut numbers = [0; 3];
            for ((name, text), number) in names.iter().zip(&found).zip(&mut numbers) {
                let others: Vec<&str> = names.iter().filter(|n| *n != name).copied().collect();
                let wrong = |got: String| {
                    let want = format!("a number beside {}", others.join(" and "));
                    Error::argument(OPERATION, *name, want, got)
                        .fix(format!("set all of {}, or none and give --group none", names.join(", ")))
                };
                let text = text.as_ref().ok_or_else(|| wrong("nothing".into()))?;
                *number = text.trim().parse::<usize>().map_err(|_| wrong(format!("{text:?}")))?;
            }
            let [rank, size, local] = numbers;
            if rank >= size || local > rank {
                let want = format!("{} below {}, and {} no more", names[0], names[1], names[2]);
                return Err(Error::argument(
                    OPERATION,
                    names[0],
                    want,
                    format!("{rank}, {size} and {local}"),
                ));
            }
            return Ok(Some(Place { rank, size, local }));
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(vars: &[(&str, &str)], slurm: bool) -> Result<Option<Place>> {
        Place::of(|name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| v.to_string()), slurm)
    }

    #[test]
    fn the_first_set_counts() {
        let torch = [("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1")];
        let ompi = [
            ("OMPI_COMM_WORLD_RANK", "1"),
            ("OMPI_COMM_WORLD_SIZE", "2"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "0"),
        ];
        let slurm = [("SLURM_PROCID", "3"), ("SLURM_NTASKS", "4"), ("SLURM_LOCALID", "3")];
        let of = |rank, size, local| Some(Place { rank, size, local });
        assert_eq!(place(&torch, true).unwrap(), of(5, 8, 1));
        assert_eq!(place(&[torch, ompi, slurm].concat(), true).unwrap(), of(5, 8, 1));
        assert_eq!(place(&[ompi, slurm].concat(), true).unwrap(), of(1, 2, 0));
        assert_eq!(place(&slurm, true).unwrap(), of(3, 4, 3));
        assert_eq!(place(&slurm, false).unwrap(), None);
        assert_eq!(place(&[], true).unwrap(), None);
    }

    #[test]
    fn half_a_set_names_what_is_missing() {
        for (vars, missing) in [
            (vec![("RANK", "0"), ("WORLD_SIZE", "2")], "LOCAL_RANK"),
            (vec![("RANK", "0"), ("LOCAL_RANK", "0")], "WORLD_SIZE"),
            (
                vec![("OMPI_COMM_WORLD_SIZE", "2"), ("OMPI_COMM_WORLD_LOCAL_RANK", "0")],
                "OMPI_COMM_WORLD_RANK",
            ),
            (vec![("SLURM_PROCID", "0"), ("SLURM_LOCALID", "0")], "SLURM_NTASKS"),
            // A set that is half there is not passed over for another.
            (
                vec![("RANK", "0"), ("SLURM_PROCID", "0"), ("SLURM_NTASKS", "1"), ("SLURM_LOCALID", "0")],
                "WORLD_SIZE",
            ),
            (vec![("RANK", "x"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")], "RANK"),
            (vec![("RANK", "2"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")], "RANK"),
            (vec![("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")], "RANK"),
        ] {
            let e = place(&vars, true).unwrap_err().to_string();
            assert!(e.starts_with(&format!("group: {missing}: ")), "{e}");
        }
    }
}
