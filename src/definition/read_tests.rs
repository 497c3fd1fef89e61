//! Applications as their authors write them: the example, everything that can be wrong, and what
//! may change from one version to the next.

mod change;
mod deciders;
mod documented;
mod example;
mod shared;
mod transforms;
mod wrong;

use flexcore_domain::Name;

use super::{Application, Problem, SourceFile};

/// Reads an application of files with these names and texts.
fn read(files: &[(&str, &str)]) -> Result<Application, Vec<Problem>> {
    let files = files
        .iter()
        .map(|(path, text)| SourceFile { path: (*path).to_owned(), text: (*text).to_owned() });
    Application::read(Name::parse("shop").unwrap(), files.collect())
}

/// A small application that is right, for tests to change a line of.
const SHOP: &str = "\
aggregate: order
description: An order.
commands:
  place:
    payload:
      type: object
      required: [customer]
      properties: { customer: { type: string }, total: { type: [number, 'null'] } }
    decide: |
      (state, payload) => [
        { event: \"placed\", data: payload },
      ]
events:
  placed:
    version: 2
    data:
      type: object
      required: [customer, lines]
      properties:
        customer: { type: string }
        total: { type: [number, 'null'] }
        lines: { type: integer }
        at: { $ref: '#/$defs/place' }
      $defs: { place: { type: object, properties: { city: { type: string } } } }
    evolve: (state, event) => event.data
    upcast:
      1: |
        (data) => ({ ...data, lines: 1 })
---
read_model: customers
columns: { customer: text, orders: integer, total: number, last: timestamp, city: text, vip: boolean }
key: [customer]
on:
  order.placed:
    key: { customer: $.customer }
    set: { last: $time, city: $.at.city }
    add: { orders: 1, total: $.total }
---
query: best
reads: [customers]
parameters: { least: { type: integer, default: 0 }, city: text }
sql: |
  select customer, total::text
  from rm.customers
  where orders >= :least and city = :city
";
