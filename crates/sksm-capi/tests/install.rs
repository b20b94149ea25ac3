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
    fs::copy(target.join("debug/libsksm.a"), lib.join("libsksm.a")).unwrap();
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
    LIB.get_or_init(|| {
        // A runner may give each test a process of its own, which then have a prefix each.
        let test = std::thread::current().name().unwrap_or("all").to_owned();
        install(&Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("prefix-{test}")))
    })
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

/// Everything of it is in the program.
#[test]
fn it_can_be_linked_statically() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("table-static");
    let flags = pkg_config(&["--static", "--cflags", "--libs"]);
    run(Command::new("cc")
        .args(["-Wall", "-Werror", "-o"])
        .arg(&program)
        .arg(here.join("examples/table.c"))
        .args(flags.split_whitespace().map(|flag| match flag {
            "-lsksm" => "-l:libsksm.a",
            flag => flag,
        })));
    let output = run(&mut Command::new(&program));
    assert!(output.starts_with("merge: "), "{output}");
}

/// A kernel where another advice has the number: the library asks before it believes.
#[test]
fn another_kernels_advice_destroys_nothing() {
    let program = compile("tests/another_kernel.c", "another-kernel");
    for hidden in [None, Some("hidden")] {
        run(Command::new(&program)
            .args(hidden)
            .env("LD_LIBRARY_PATH", installed()));
    }
}

/// The oldest C that anybody may ask for, and C++; included twice, as headers are.
#[test]
fn the_header_is_good_in_all_languages() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = Path::new(env!("CARGO_TARGET_TMPDIR")).join("twice.c");
    fs::write(
        &source,
        "#include <sksm.h>\n#include <sksm.h>\nint main(void) { return sksm_merge(0, 0); }\n",
    )
    .unwrap();
    for language in [
        ["c", "-std=c89"],
        ["c", "-std=c99"],
        ["c", "-std=c11"],
        ["c++", "-std=c++98"],
        ["c++", "-std=c++17"],
    ] {
        run(Command::new("cc")
            .arg("-x")
            .args(language)
            .args([
                "-pedantic",
                "-Wall",
                "-Wextra",
                "-Werror",
                "-fsyntax-only",
                "-I",
            ])
            .arg(here.join("include"))
            .arg(&source));
    }
}
