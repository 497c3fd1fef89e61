//! Bounds that stand in the tables and in the domain.

use flexcore_domain::SLOTS;

use crate::database::Database;

/// A migration is text and never changed: another number of slots takes another migration.
#[tokio::test]
async fn the_tables_take_as_many_slots_as_there_are() {
    let database = Database::new().await;
    let checks = database
        .one(
            "select string_agg(rule, '; ' order by rule) from ( \
               select pg_get_constraintdef(oid) as rule from pg_constraint \
               where contype = 'c' and connamespace = 'flexcore'::regnamespace) as checks \
             where rule like '%(slot %' or rule like '%(portions %'",
        )
        .await;
    let last = SLOTS - 1;
    let portions = format!("CHECK (((portions >= 1) AND (portions <= {SLOTS})))");
    let slot = format!("CHECK (((slot >= 0) AND (slot <= {last})))");
    assert_eq!(checks, format!("{portions}; {slot}"));
}
