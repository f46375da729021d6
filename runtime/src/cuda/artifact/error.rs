//! What can be wrong with an artifact.

use std::io;
use std::path::{Path, PathBuf};

/// Why an artifact cannot be written, or read, or does not fit.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// A file that is not there, or cannot be read.
    #[error(
        "`{}` cannot be read: {reason}; an artifact is a folder that `eva compile` made, with all its files",
        path.display()
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A file that makes no sense.
    #[error("`{}` is damaged: {what}; make the artifact again with `eva compile`", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A file that is not the one that was written.
    #[error(
        "`{}` was changed since the artifact was made: its SHA-256 is not the one in manifest.json; make the artifact \
         again with `eva compile`",
        path.display()
    )]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// It was made by another version.
    #[error("`{}` was made by eva {have}, and this is eva {want}: make it again with `eva compile`", path.display())]
    OtherVersion {
        /// The folder.
        path: PathBuf,
        /// The version that made it.
        have: String,
        /// This one.
        want: String,
    },
    /// It is for another chip.
    #[error("`{}` is for {have}, and this eva runs kernels for {want} only", path.display())]
    OtherTarget {
        /// The folder.
        path: PathBuf,
        /// The chip.
        have: String,
        /// The chip that would do.
        want: String,
    },
    /// It lacks a kernel.
    #[error(
        "`{}` lacks the kernel `{kernel}` as it is needed: it was made of another model, or with another type or form of \
         attention; make one of this model with `eva compile`",
        path.display()
    )]
    NoKernel {
        /// The folder.
        path: PathBuf,
        /// The kernel.
        kernel: String,
    },
    /// The folder for a new one has files in it.
    #[error("`{}` is not empty: give a new folder, or remove what is there", path.display())]
    NotEmpty {
        /// The folder.
        path: PathBuf,
    },
    /// A file that cannot be written.
    #[error("`{}` cannot be written: {reason}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// `ptxas` cannot be run.
    #[error("`{}` cannot be run: {reason}; EVA_PTXAS, or PATH, must name the `ptxas` of CUDA 12.8 or later", path.display())]
    NoPtxas {
        /// The program.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// `ptxas` refused a kernel.
    #[error("`{}` refuses the kernel `{kernel}`:\n{said}", path.display())]
    Ptxas {
        /// The program.
        path: PathBuf,
        /// The kernel.
        kernel: String,
        /// Its own words.
        said: String,
    },
}

impl ArtifactError {
    pub(super) fn read(path: &Path, error: io::Error) -> Self {
        Self::Read { path: path.into(), reason: error.to_string() }
    }

    pub(super) fn write(path: &Path, error: io::Error) -> Self {
        Self::Write { path: path.into(), reason: error.to_string() }
    }
}
