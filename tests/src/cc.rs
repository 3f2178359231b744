//! The C compilers of this machine.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

/// A compiler that was found to work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiler {
    program: String,
    language: &'static str,
}

impl Compiler {
    /// The C compiler `program`, if it compiles C with the kernel's headers; else the reason.
    ///
    /// # Errors
    /// What is missing, in one line.
    pub fn c(program: &str) -> Result<Self, String> {
        Self::probe(program, "c")
    }

    /// The C++ compiler `program`, if it compiles C++ with the kernel's headers; else the reason.
    ///
    /// # Errors
    /// What is missing, in one line.
    pub fn cxx(program: &str) -> Result<Self, String> {
        Self::probe(program, "c++")
    }

    fn probe(program: &str, language: &'static str) -> Result<Self, String> {
        let compiler = Self {
            program: program.to_owned(),
            language,
        };
        let probe = || -> anyhow::Result<()> {
            let dir = tempfile::tempdir()?;
            let source = dir.path().join("probe.h");
            std::fs::write(&source, "#include <linux/types.h>\n")?;
            compiler.check(&source, &[])
        };
        match probe() {
            Ok(()) => Ok(compiler),
            Err(error) => {
                let error = format!("{error:#}");
                Err(error
                    .lines()
                    .next()
                    .unwrap_or("it does not work")
                    .to_owned())
            }
        }
    }

    /// Name of the program.
    #[must_use]
    pub fn program(&self) -> &str {
        &self.program
    }

    /// Whether the compiler knows an option.
    #[must_use]
    pub fn accepts(&self, option: &str) -> bool {
        Self {
            program: self.program.clone(),
            language: self.language,
        }
        .run(&[option, "-fsyntax-only", "/dev/null"])
        .is_ok()
    }

    /// Compiles `source` without output.
    ///
    /// # Errors
    /// What the compiler said.
    pub fn check(&self, source: &Path, options: &[&str]) -> anyhow::Result<()> {
        let mut arguments = options.to_vec();
        let source = source.to_str().context("The path is not UTF-8")?;
        arguments.extend(["-fsyntax-only", source]);
        self.run(&arguments)
    }

    /// Compiles `text` with `include` on the include path, runs the program, and returns what it
    /// printed.
    ///
    /// # Errors
    /// What the compiler said, or how the program ended.
    pub fn output_of(
        &self,
        text: &str,
        include: &Path,
        options: &[&str],
    ) -> anyhow::Result<String> {
        let dir = tempfile::tempdir()?;
        let source = dir.path().join("program.c");
        let program: PathBuf = dir.path().join("program");
        std::fs::write(&source, text)?;
        self.build(&source, &program, include, options)?;
        let run = Command::new(&program)
            .output()
            .context("Cannot run what was compiled")?;
        if !run.status.success() {
            bail!("The compiled program ended with {}", run.status);
        }
        String::from_utf8(run.stdout).context("The compiled program prints no text")
    }

    /// Builds `program` from one file, with `include` on the include path.
    ///
    /// # Errors
    /// What the compiler said.
    pub fn build(
        &self,
        source: &Path,
        program: &Path,
        include: &Path,
        options: &[&str],
    ) -> anyhow::Result<()> {
        let paths = [include, program, source].map(Path::to_str);
        let [Some(include), Some(output), Some(source)] = paths else {
            bail!("A path is not UTF-8");
        };
        let mut arguments = options.to_vec();
        arguments.extend(["-I", include, "-o", output, source]);
        self.run(&arguments)
    }

    /// Builds a program of `tests/guest` into `dir`: for guests, thus without shared libraries.
    ///
    /// # Errors
    /// What the compiler said.
    pub fn guest_program(&self, name: &str, dir: &Path) -> anyhow::Result<PathBuf> {
        let program = dir.join(name);
        let source = crate::root().join(format!("tests/guest/{name}.c"));
        let uapi = crate::root().join("guest-driver/uapi");
        let options = ["-O2", "-Wall", "-Wextra", "-Werror", "-static", "-pthread"];
        self.build(&source, &program, &uapi, &options)?;
        Ok(program)
    }

    fn run(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let output = Command::new(&self.program)
            .args(["-x", self.language])
            .args(arguments)
            .output()
            .with_context(|| format!("Cannot run {}", self.program))?;
        if !output.status.success() {
            bail!(
                "{} {} ended with {}\n{}",
                self.program,
                arguments.join(" "),
                output.status,
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(())
    }
}
