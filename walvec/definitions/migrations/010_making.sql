-- What is being made for a new vector table, entered before it is begun, and gone with the definition's entry.
ALTER TABLE walvec_control.removals ADD COLUMN making boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN walvec_control.removals.making IS 'its maker holds the row; who finds it free found a maker that was killed';
