"""What every part needs: errors for users, atomic files, processes and progress bars."""
