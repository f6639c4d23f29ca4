//! An authority in a directory. Files are replaced atomically, so that they survive a crash in
//! between.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::kept::{Kept, StoreError};
use super::plan::Change;

const KEY: &str = "ca.key";
const CERTIFICATES: &str = "ca.crt";
const RECORD: &str = "rotation.json";
const ROTATE: &str = "rotate";
/// The public trust anchors, in PEM.
const ANCHORS: &str = "trust-anchors.pem";
const SECRET: u32 = 0o600;
const PUBLIC: u32 = 0o644;

/// `None`: the directory has no authority yet.
pub fn read(directory: &Path) -> Result<Option<Kept>, StoreError> {
    let read = |name: &str| read_file(&directory.join(name));
    // A key without a certificate is left from a first start that was interrupted: nothing trusts
    // it yet.
    let Some(certificates) = read(CERTIFICATES)? else {
        return Ok(None);
    };
    let key = read(KEY)?.ok_or(StoreError::Incomplete(KEY))?;
    let rotation_request =
        read(ROTATE)?.map(|text| String::from_utf8_lossy(&text).trim().to_owned());
    Ok(Some(Kept {
        certificates,
        key,
        further: None,
        record: read(RECORD)?,
        rotation_request,
        version: None,
        owners: None,
    }))
}

pub fn create(directory: &Path, kept: &Kept) -> Result<(), StoreError> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o755);
    (builder.create(directory)).map_err(file(directory))?;
    if let Some(record) = &kept.record {
        write_file(&directory.join(RECORD), record, SECRET)?;
    }
    write_file(&directory.join(KEY), &kept.key, SECRET)?;
    write_file(&directory.join(CERTIFICATES), &kept.certificates, PUBLIC)
}

pub fn write(directory: &Path, change: &Change) -> Result<(), StoreError> {
    // The issuing authority comes first: an interruption after it can be completed.
    write_file(&directory.join(RECORD), &change.record.to_json(), SECRET)?;
    if let Some(made) = &change.made {
        write_file(&directory.join(KEY), made.key.as_bytes(), SECRET)?;
        let certificates = made.certificates.as_bytes();
        write_file(&directory.join(CERTIFICATES), certificates, PUBLIC)?;
    }
    Ok(())
}

pub fn publish(directory: &Path, anchors_pem: &str) -> Result<(), StoreError> {
    let path = directory.join(ANCHORS);
    if read_file(&path)?.as_deref() == Some(anchors_pem.as_bytes()) {
        return Ok(());
    }
    write_file(&path, anchors_pem.as_bytes(), PUBLIC)
}

fn file(path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path: PathBuf = path.to_owned();
    move |source| StoreError::File { path, source }
}

/// `None`: there is no such file.
fn read_file(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(file(path)(source)),
    }
}

fn write_file(path: &Path, content: &[u8], mode: u32) -> Result<(), StoreError> {
    replace(path, content, mode).map_err(file(path))
}

/// Writes a file atomically.
fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let temporary = path.with_extension("new");
    // A leftover temporary file may have another mode.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    match path.parent() {
        Some(directory) => fs::File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}
