//! Our tables' migrations, kept in the executable.
//!
//! `sqlx::migrate!` would list the folder by itself. But a macro runs in the compiler: the client of
//! Postgres, tokio and TLS would be built a second time for it.

use sqlx::{
    SqlSafeStr as _,
    migrate::{Migration, MigrationType, Migrator},
};

/// Each file with its text.
macro_rules! files {
    ($($name:literal)*) => {
        &[$(($name, include_str!(concat!("../../schemas/sql/", $name, ".sql")))),*]
    };
}

/// The files of `schemas/sql`, as `NUMBER_NAME`. None of them is ever changed or removed: Postgres
/// keeps a hash of each that was run.
const FILES: &[(&str, &str)] = files! {
    "0001_isolation"
    "0002_projections"
    "0003_epochs"
    "0004_held"
    "0005_log"
    "0006_troubles"
    "0007_served"
    "0010_query_login"
    "0011_portions"
};

/// All migrations, the earliest first.
pub(crate) fn all() -> Migrator {
    Migrator::with_migrations(FILES.iter().map(|(name, text)| migration(name, text)).collect())
}

fn migration(name: &str, text: &'static str) -> Migration {
    let (number, words) = name.split_once('_').expect("BUG: NUMBER_NAME");
    let number = number.parse().expect("BUG: a migration's number");
    let description = words.replace('_', " ").into();
    Migration::new(number, description, MigrationType::Simple, text.into_sql_str(), false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_folder_is_a_migration() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../schemas/sql");
        let mut there: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .collect();
        there.sort();
        let named: Vec<String> = FILES.iter().map(|(name, _)| format!("{name}.sql")).collect();
        assert_eq!(named, there);
        let numbers: Vec<i64> = all().iter().map(|one| one.version).collect();
        assert!(numbers.windows(2).all(|two| two[0] < two[1]), "{numbers:?}");
    }

    #[test]
    fn a_migration_is_what_postgres_has_kept_of_it() {
        // From `flexcore._sqlx_migrations` of an earlier version of FlexCore.
        let all = all();
        let first = all.iter().next().unwrap();
        assert_eq!((first.version, &*first.description), (1, "isolation"));
        let hash: String = first.checksum.iter().map(|byte| format!("{byte:02x}")).collect();
        let kept = "523f2f7a7b733a8660abb40b670ecab2f9f00ff96a6a760d\
                    7bf7dda6ee73556f199c036dcdcc215143cc3d96634e1de4";
        assert_eq!(hash, kept);
    }
}
