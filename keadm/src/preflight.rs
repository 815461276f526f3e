//! Checks before anything is changed. All are made, so that everything that is wrong is seen at once.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Result, bail};

use crate::output;

/// One cause, and its fix.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) cause: String,
    pub(crate) fix: String,
}

impl Problem {
    pub(crate) fn new(cause: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { cause: cause.into(), fix: fix.into() }
    }
}

/// The result of a check: what was found.
pub(crate) type Check<T> = Result<T, Problem>;

#[derive(Default)]
pub(crate) struct Preflight {
    problems: Vec<Problem>,
}

impl Preflight {
    pub(crate) fn take<T>(&mut self, check: Check<T>) -> Option<T> {
        check.map_err(|problem| self.problems.push(problem)).ok()
    }

    /// Takes what a check found, and says so.
    pub(crate) fn say<T>(&mut self, check: Check<T>, found: impl FnOnce(&T) -> String) -> Option<T> {
        let value = self.take(check)?;
        output::done(found(&value));
        Some(value)
    }

    /// Prints the problems; an error if there are any, unless the user wants to go on.
    pub(crate) fn finish(self, force: bool) -> Result<()> {
        for Problem { cause, fix } in &self.problems {
            output::problem(cause, fix);
        }
        match self.problems.len() {
            0 => Ok(()),
            _ if force => Ok(()),
            1 => bail!("a preflight check failed; nothing was changed"),
            n => bail!("{n} preflight checks failed; nothing was changed"),
        }
    }
}

pub(crate) fn root() -> Check<()> {
    if nix::unistd::geteuid().is_root() {
        Ok(())
    } else {
        Err(Problem::new("keadm is not run by root", "run it as root, or with sudo"))
    }
}

/// Finds a daemon's program: in the directory that was named, or else beside keadm, in /usr/local/bin, on the PATH.
pub(crate) fn program(name: &str, bin_dir: Option<&Path>) -> Check<PathBuf> {
    let own = env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned));
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<PathBuf> = match bin_dir {
        Some(dir) => vec![dir.to_owned()],
        None => own.into_iter().chain(["/usr/local/bin".into()]).chain(env::split_paths(&path)).collect(),
    };
    for dir in &dirs {
        let file = dir.join(name);
        if rustix::fs::access(&file, rustix::fs::Access::EXEC_OK).is_ok() && file.is_file() {
            return std::path::absolute(&file).map_err(|error| {
                Problem::new(format!("{}: {error}", file.display()), "give an absolute --bin-dir")
            });
        }
    }
    let place = match bin_dir {
        Some(dir) => dir.display().to_string(),
        None => "the directory of keadm, /usr/local/bin, or the PATH".to_owned(),
    };
    Err(Problem::new(
        format!("the program {name} is not in {place}"),
        format!("copy {name} there, or name its directory with --bin-dir"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_one_problem_with_its_fix() {
        let problem = program("edgecore", Some(Path::new("/nowhere"))).unwrap_err();
        assert_eq!(problem.cause, "the program edgecore is not in /nowhere");
        assert!(problem.fix.contains("--bin-dir"));
    }
}
