//! What is refused, and how it is said: operation, argument, expected, got - and what to change, where it is known.

mod tiny;

mod errors {
    mod advice;
    mod model;
    mod ops;
    mod output;
    mod terminal;
    mod training;
}
