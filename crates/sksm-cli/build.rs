//! Builds the preload object, which the command carries, as `cargo install` installs programs only.
//!
//! By a cargo of its own: the object has another profile than the command, and no std. Where that cannot be, without a network for
//! instance, `SKSM_PRELOAD_OBJECT` names one that was made elsewhere.

use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// As the workspace's profile `preload` and the features that go with it.
const PROJECT: &str = r#"
[workspace]

[package]
name = "sksm-object"
version = "0.0.0"
edition = "2024"

[lib]
path = "lib.rs"

[profile.release]
opt-level = "z"
lto = "fat"
codegen-units = 1
panic = "abort"
strip = true

[profile.release.package.blake3]
opt-level = 3
[profile.release.package.sksm-store]
opt-level = 2
"#;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=SKSM_PRELOAD_OBJECT");
    let out = PathBuf::from(variable("OUT_DIR")?);
    let object = match env::var_os("SKSM_PRELOAD_OBJECT") {
        Some(path) => {
            let path = PathBuf::from(path);
            println!("cargo::rerun-if-changed={}", path.display());
            fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?
        }
        // It is for 64-bit programs with a loader, and docs.rs has no network.
        None if !is_loaded_there()? || env::var_os("DOCS_RS").is_some() => Vec::new(),
        None => fs::read(build(&out.join("object"))?)?,
    };
    fs::write(out.join("libsksm_preload.so"), object)?;
    Ok(())
}

fn variable(name: &str) -> Result<String, Box<dyn Error>> {
    env::var(name).map_err(|error| format!("{name}: {error}").into())
}

/// musl's programs are static unless somebody wants otherwise.
fn is_loaded_there() -> Result<bool, Box<dyn Error>> {
    let is = |name: &str, value| Ok::<_, Box<dyn Error>>(variable(name)? == value);
    Ok(is("CARGO_CFG_TARGET_OS", "linux")?
        && is("CARGO_CFG_TARGET_ENV", "gnu")?
        && is("CARGO_CFG_TARGET_POINTER_WIDTH", "64")?)
}

/// A project that has nothing but the object as its dependency: from the repository, or of this version from the registry.
fn build(dir: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let own = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let mut project = format!(
        "{PROJECT}\n[dependencies.sksm-preload]\nversion = \"={}\"\ndefault-features = false\n",
        variable("CARGO_PKG_VERSION")?
    );
    let source = own.join("../sksm-preload");
    if source.exists() {
        project += &format!("path = {source:?}\n");
        for dir in ["sksm", "sksm-store", "sksm-preload"].map(|name| own.join("..").join(name)) {
            println!("cargo::rerun-if-changed={}/src", dir.display());
            println!("cargo::rerun-if-changed={}/Cargo.toml", dir.display());
        }
    }
    fs::create_dir_all(dir)?;
    fs::write(dir.join("Cargo.toml"), project)?;
    fs::write(dir.join("lib.rs"), "#![no_std]\n")?;
    // What has been downloaded already will do.
    let locks = ["Cargo.lock", "../../Cargo.lock"].map(|lock| own.join(lock));
    if let Some(lock) = locks.iter().find(|lock| lock.exists()) {
        fs::copy(lock, dir.join("Cargo.lock"))?;
    }
    let (target, made) = (variable("TARGET")?, dir.join("target"));
    let mut cargo = Command::new(variable("CARGO")?);
    cargo
        .args(["build", "--quiet", "--release", "--package", "sksm-preload"])
        .args(["--target", &target, "--target-dir"])
        .arg(&made)
        .current_dir(dir)
        // The cargo that waits for this one holds its directories locked.
        .env("CARGO_BUILD_BUILD_DIR", &made)
        // What is meant for the command: instrumentation, clippy.
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTFLAGS")
        .env_remove("RUSTC_WORKSPACE_WRAPPER");
    let status = cargo.status()?;
    if !status.success() {
        return Err("the preload object does not build; \
             SKSM_PRELOAD_OBJECT can name one that was made elsewhere, or /dev/null for none, as \
             for `cargo publish --dry-run` of a version whose sksm-preload is in no registry yet"
            .into());
    }
    Ok(made.join(target).join("release/libsksm_preload.so"))
}
