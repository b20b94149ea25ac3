//! The library as it is installed: found by pkg-config, linked by its soname, used by a C program.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

const VERSION: &str = env!("CARGO_PKG_VERSION");

fn run(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Installs below a directory and returns that of the libraries. Cargo builds no shared objects for tests, so it is built here.
fn install(prefix: &Path) -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    run(Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--offline", "--package", "sksm-capi"])
        .arg("--target-dir")
        .arg(target)
        .current_dir(here));
    _ = fs::remove_dir_all(prefix);
    let (lib, include) = (prefix.join("lib"), prefix.join("include"));
    fs::create_dir_all(lib.join("pkgconfig")).unwrap();
    fs::create_dir_all(&include).unwrap();
    let real = format!("libsksm.so.{VERSION}");
    fs::copy(target.join("debug/libsksm.so"), lib.join(&real)).unwrap();
    symlink(&real, lib.join("libsksm.so.0")).unwrap();
    symlink("libsksm.so.0", lib.join("libsksm.so")).unwrap();
    fs::copy(here.join("include/sksm.h"), include.join("sksm.h")).unwrap();
    let description = fs::read_to_string(here.join("sksm.pc.in")).unwrap();
    let description = description
        .replace("@prefix@", prefix.to_str().unwrap())
        .replace("@libdir@", "${prefix}/lib")
        .replace("@version@", VERSION);
    fs::write(lib.join("pkgconfig/sksm.pc"), description).unwrap();
    lib
}

/// What is installed, once for all tests.
fn installed() -> &'static Path {
    static LIB: OnceLock<PathBuf> = OnceLock::new();
    LIB.get_or_init(|| install(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("prefix")))
}

fn pkg_config(what: &[&str]) -> String {
    run(Command::new("pkg-config")
        .args(what)
        .arg("sksm")
        .env("PKG_CONFIG_PATH", installed().join("pkgconfig")))
}

/// Builds a C program of this crate as its users would.
fn compile(source: &str, program: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(source);
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(program);
    run(Command::new("cc")
        .args(["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror"])
        .arg("-o")
        .arg(&program)
        .arg(&source)
        .args(pkg_config(&["--cflags", "--libs"]).split_whitespace()));
    program
}

#[test]
fn a_c_program_uses_it() {
    assert_eq!(pkg_config(&["--modversion"]).trim(), VERSION);
    let program = compile("examples/table.c", "table");
    let output = run(Command::new(&program).env("LD_LIBRARY_PATH", installed()));
    let merged = rust::support() == rust::Support::Merge;
    assert_eq!(output.starts_with("merge: done\n"), merged, "{output}");
    assert_eq!(
        output.ends_with("\n0 KiB more are merged\n"),
        !merged,
        "{output}"
    );
}

#[test]
fn every_function_does_as_it_says() {
    let program = compile("tests/functions.c", "functions");
    run(Command::new(&program).env("LD_LIBRARY_PATH", installed()));
}

/// The name without a version is for building.
#[test]
fn programs_find_it_by_its_soname_alone() {
    let program = compile("examples/table.c", "table-by-soname");
    let only = Path::new(env!("CARGO_TARGET_TMPDIR")).join("soname");
    _ = fs::remove_dir_all(&only);
    fs::create_dir(&only).unwrap();
    let name = only.join("libsksm.so.0");
    fs::copy(installed().join("libsksm.so.0"), &name).unwrap();
    run(Command::new(&program).env("LD_LIBRARY_PATH", &only));
    fs::remove_file(&name).unwrap();
    let without = Command::new(&program)
        .env("LD_LIBRARY_PATH", &only)
        .output()
        .unwrap();
    assert!(!without.status.success(), "linked to something else");
}

#[test]
fn the_header_is_good_in_c_plus_plus() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    run(Command::new("cc")
        .args(["-x", "c++", "-fsyntax-only", "-Wall", "-Wextra", "-Werror"])
        .arg(here.join("include/sksm.h")));
}
