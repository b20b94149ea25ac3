//! The crate compiles for systems that merge nothing, so that a program for several need not leave it out.

use std::io::Write;
use std::path::Path;
use std::process::Command;

/// Android is Linux without glibc; the others have no support.
const TARGETS: &[&str] = &[
    "aarch64-linux-android",
    "x86_64-unknown-linux-musl",
    "aarch64-apple-darwin",
    "x86_64-unknown-freebsd",
    "x86_64-pc-windows-gnu",
];

fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn it_compiles_for_every_target_that_is_installed() {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let root = output(Command::new(rustc).args(["--print", "sysroot"]));
    let installed = Path::new(root.trim()).join("lib/rustlib");
    for target in TARGETS {
        if !installed.join(target).join("lib").exists() {
            let reason =
                format!("the target is not installed; `rustup target add {target}` does it");
            // Past the harness, which keeps to itself what tests print that pass.
            writeln!(std::io::stderr(), "\nSKIP elsewhere/{target}: {reason}").unwrap();
            continue;
        }
        for features in ["--all-features", "--no-default-features"] {
            output(
                Command::new(env!("CARGO"))
                    .args([
                        "check",
                        "--quiet",
                        "--offline",
                        "--lib",
                        "--package",
                        "sksm",
                    ])
                    .args([features, "--target", target, "--target-dir"])
                    .arg(env!("CARGO_TARGET_TMPDIR"))
                    .env("RUSTFLAGS", "-D warnings")
                    .current_dir(env!("CARGO_MANIFEST_DIR")),
            );
        }
    }
}
