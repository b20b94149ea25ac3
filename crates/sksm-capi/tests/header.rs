//! `include/sksm.h` is what cbindgen makes of the source. To bring it up to date: `SKSM_UPDATE=1 cargo test -p sksm-capi`.

use std::path::Path;

#[test]
fn the_header_is_up_to_date() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut made = Vec::new();
    cbindgen::Builder::new()
        .with_config(cbindgen::Config::from_file(here.join("cbindgen.toml")).unwrap())
        .with_src(here.join("src/lib.rs"))
        .generate()
        .unwrap()
        .write(&mut made);
    let path = here.join("include/sksm.h");
    if std::env::var_os("SKSM_UPDATE").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        there.as_bytes() == made,
        "include/sksm.h is not what src/lib.rs says; SKSM_UPDATE=1 cargo test -p sksm-capi updates it"
    );
}
